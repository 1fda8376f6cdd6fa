"""A program that reads a MATLAB file. :mod:`tagrank.data.sets.mat_files` runs it.

Its argument is JSON: the path, the names of the variables (null for all), the limits of memory in bytes and of
processor time in seconds, and where to import from. It writes a pickle: the variables by name, or the kind and the
message of an error.
"""

import json
import pickle
import resource
import sys


def main() -> None:
    path, names, memory, seconds, sys.path[:] = json.loads(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    from scipy.io import loadmat

    result: object
    try:
        result = loadmat(path, variable_names=names, appendmat=False)
    except NotImplementedError as error:
        result = ("version", str(error))
    except Exception as error:
        # A damaged file can raise ValueError, TypeError, zlib.error, KeyError and more, or OSError without errno.
        result = ("damaged", f"{type(error).__name__}: {error}".removesuffix(": "))
        if isinstance(error, OSError) and error.errno:
            result = ("unread", str(error.strerror))
    pickle.dump(result, sys.stdout.buffer)


if __name__ == "__main__":
    main()
