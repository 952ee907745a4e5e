"""From a data set on disk to normalised batches on the device.

`sources` reads a data set into the uint8 arrays of `arrays`; `views` draws each epoch's order and augmentation as
integers; `batches` turns (indices, views) into images. Nothing here knows models, methods or training.
"""
