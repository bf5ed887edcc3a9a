"""Importing this registers `VpeftBackbone` with mmseg: for `custom_imports`, which knows no other way.

`mmcv._ext` is stood in for as well, so that mmseg's own tools run with mmcv-lite.
"""

from vpeft.dense.mmseg import register

register()
