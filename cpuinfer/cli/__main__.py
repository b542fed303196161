from cpuinfer.cli import main

main()
