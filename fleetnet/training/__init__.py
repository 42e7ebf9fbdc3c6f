"""Training: from a model, pictures and settings to a run folder. A reading order:

    fit          from the first check to the last figure
    checks       what is looked at before the first step
    setup        what a run is made of: device, preprocessing, augmentation, batches
    learner      what is trained, together with all that it is trained with
    epoch        one pass over the training images
    objective    the loss of a batch; mixing and sizes
    distill      the loss of a batch with a teacher beside the labels
    answers      what a teacher finds, and the folder in which that is stored
    reinforce    asks a teacher before there is a training
    schedule     learning rate and weight decay by step, an early end
    optimizer    groups of parameters, what changes them, the average of the weights
    keeping      the state that is saved within an epoch: every few minutes, and on Ctrl-C
    so_far       what an epoch has come to
    branching    several endings from the state of one run
    replay       any step of a run once more, for whoever looks for what broke
    nonfinite    the first module whose output or gradient is not finite
    signals      Ctrl-C and SIGTERM wait for the end of a step
    evaluate     the figures of a model on annotated images
    retrieval    the same by what is most alike
    run          the run folder: what is written, in which order
    distributed  several processes that train together
    hooks        what listens: loggers, progress
    trackers     TensorBoard and the like

and what these need:

    memory       how many images a step has room for
    config       the settings, and which of them are read when
    named_weights  weights of classes in a list or a file
    freezing     parts of a model that are not trained
    claims       a run folder belongs to one process at a time
    fingerprint  whether a run goes on with the data that it began with
    log          log.jsonl
    pictures     batches, samples and mistakes, drawn
    overview     results.csv, plots/ and report.html

Nothing is imported here, so that the settings can be listed without loading torch.
"""
