"""What a job will take before it begins: tokens, disk, memory and time, stage by stage."""
