"""A short training whose run is published."""

# 22 validation photos are enough to tell what is strange.
TRAIN = ("--validation_fraction", "0.6", "--test_fraction", "0.2", "--num_train_epochs", "2", "--use_cpu")
