"""The one part that pyproject.toml can't yet say in a stable way: the compiled kernel.

It is optional: without a C compiler NumPy does the same, to the byte (irv2/images/bicubic.py). It
uses nothing of Python's, so that one wheel serves every version.
"""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "irv2.images._bicubic",
            sources=["irv2/images/_bicubic.c"],
            extra_compile_args=["-O3", "-ffp-contract=off"],
            optional=True,
            py_limited_api=True,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
