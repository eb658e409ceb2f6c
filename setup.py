"""The packages of a wheel: mvit_video, and configs/ as its folder `mvit_video/configs`. All metadata is in pyproject.toml."""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["mvit_video*"]), "mvit_video.configs"])
