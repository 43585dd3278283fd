"""The PaddlePaddle side, the product; the only package that imports paddle."""

import os

from common.cpu_kernels import choose_mkl_kernels, read_cpuinfo

# here, since it must be settled before any module of the package imports paddle
choose_mkl_kernels(os.environ, read_cpuinfo())
