"""The PaddlePaddle side, the product; the only package that imports paddle."""
