"""The command line of gems_ray: `python run_tune.py --help`."""

from gems_ray.cli import main

if __name__ == "__main__":
    main()
