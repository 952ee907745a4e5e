"""Train one run, or with -m a sweep of runs:  python launch.py -m distiller=kd,dkd,edkd pair=all"""

from edkd.cli.launch import main

if __name__ == "__main__":
    main()
