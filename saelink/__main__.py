from saelink.cli import main

main()
