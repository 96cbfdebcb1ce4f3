from saelink.cli.app import main

main()
