"""From samples to batches. A reading order:

    decode     a sample from its files: the picture, and its annotation in the picture's pixels
    augment    what is done to both before a network learns from them; `Augmentation`
    colors     brightness, contrast, saturation and hue of pictures as bytes
    layouts    where pictures lie in an input: crops, scales and mosaics as numbers
    dataset    samples as network inputs, and batches of them
    mixing     what changes a whole batch: mixup, cutmix, sizes
    randomness random numbers that belong to a sample, a batch or a step
    samplers   in which order an epoch goes through the samples, in which batches, and at which
               sizes
    loader     the one builder of batches

and what the loader needs:

    cache      pictures in memory, as far as there is room
    workers    processes that read, none of which is waited for without end
    handover   batches through shared memory, as long as it holds them
"""
