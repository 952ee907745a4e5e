"""From a data set on disk to normalised batches on the device.

`sources` reads a data set into the uint8 arrays of `arrays`, or finds its `files`; `views` draws each epoch's order and
augmentation as integers; `resident` turns (indices, views) into images, and `streaming` reads them file by file.
Nothing here knows models, methods or training.
"""
