"""Builds the native modules with CMake. Everything declarative is in pyproject.toml.

WARPMERGE_CUDA=auto|on|off says whether with the CUDA kernels; CUDAARCHS for which architectures.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


class CMakeBuild(build_ext):
    """Configures, builds and installs into the package's directory; the build directory is kept: rebuilds are quick."""

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build = ROOT / "build" / f"cmake-{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
        build.mkdir(parents=True, exist_ok=True)
        configure = [
            "cmake",
            f"-S{ROOT}",
            f"-B{build}",
            f"-DPython_EXECUTABLE={sys.executable}",
            # In an isolated build these live in a directory that is gone the next time: never trust the cache.
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            # Nor for what the environment may have said the last time and does not say now.
            f"-DWARPMERGE_CUDA={os.environ.get('WARPMERGE_CUDA') or 'auto'}",
            "-DWARPMERGE_CUDA_EMULATION=OFF",
            "-UCMAKE_CUDA_ARCHITECTURES",
            *os.environ.get("CMAKE_ARGS", "").split(),
        ]
        ninja = shutil.which("ninja")
        if ninja and "CMAKE_GENERATOR" not in os.environ:
            configure += ["-GNinja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
        subprocess.run(configure, check=True)
        subprocess.run(["cmake", "--build", build, "--parallel"], check=True)
        subprocess.run(["cmake", "--install", build, "--prefix", target], check=True)

    def copy_extensions_to_source(self) -> None:
        """For an editable install: setuptools copies the module that it knows of, this the others that were built."""
        super().copy_extensions_to_source()
        target = Path(self.get_ext_fullpath("warpmerge._core")).resolve().parent
        suffix = sysconfig.get_config_var("EXT_SUFFIX")
        (target / f"_cuda{suffix}").unlink(missing_ok=True)  # an earlier build may have had it
        for module in Path(self.build_lib, "warpmerge").glob(f"_cuda*{suffix}"):
            self.copy_file(str(module), str(target / module.name))


setup(ext_modules=[Extension("warpmerge._core", sources=[])], cmdclass={"build_ext": CMakeBuild})
