"""The extensions of fastws and the one set of Cython directives they are built with.

python setup.py build_ext --inplace            the extensions
    FASTWS_DEBUG=1                              bounds checks, assertions, no optimisation
    FASTWS_SANITIZE=1                           AddressSanitizer and UndefinedBehaviorSanitizer
    FASTWS_PROBES=1                             also tests/**/probe*.pyx, the tests' doors to cdef functions
"""

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

DEBUG = os.environ.get("FASTWS_DEBUG") == "1"
SANITIZE = os.environ.get("FASTWS_SANITIZE") == "1"
PROBES = os.environ.get("FASTWS_PROBES") == "1"

DIRECTIVES = {
    "language_level": 3,
    "boundscheck": DEBUG,
    "wraparound": False,
    "initializedcheck": False,
    "cdivision": True,
    "embedsignature": False,
    "freethreading_compatible": False,
}

COMPILE = ["-std=c11", "-Wall", "-Wsign-compare", "-Wno-unused-function", "-Wno-unreachable-code"]
LINK: list[str] = []
if DEBUG:
    COMPILE += ["-O0", "-g", "-UNDEBUG"]
elif SANITIZE:
    COMPILE += ["-O1", "-g"]
else:
    COMPILE += ["-O3", "-fno-plt"]
if SANITIZE:
    FLAGS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"]
    COMPILE += FLAGS
    LINK += FLAGS


def extension(path: Path) -> Extension:
    """The extension module of one .pyx; its dotted name is its path."""
    return Extension(
        ".".join(path.with_suffix("").parts),
        [str(path)],
        extra_compile_args=COMPILE,
        extra_link_args=LINK,
        include_dirs=["fastws/wire"],
        depends=[str(header) for header in sorted(Path("fastws").rglob("*.h"))],
    )


def sources() -> list[Path]:
    rooms = sorted(Path("fastws").rglob("*.pyx"))
    probes = sorted(Path("tests").rglob("probe*.pyx")) if PROBES else []
    return rooms + probes


setup(
    ext_modules=cythonize(
        [extension(path) for path in sources()],
        compiler_directives=DIRECTIVES,
        nthreads=2,
        build_dir="build/cython",
        show_all_warnings=False,
    ),
)
