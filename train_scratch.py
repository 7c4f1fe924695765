"""Train a network from random weights: the control that shows what transfer learning gains.

    python train_scratch.py --dataset_name sample/leaves --model_type vit --model_size nano

A convolutional network, with strong augmentation; then the architecture of a pretrained model, without its weights:
    python train_scratch.py --dataset_name sample/leaves --model_type convnextv2 --augmentation strong
    python train_scratch.py --dataset_name sample/leaves --model_name_or_path sample/vit

On all GPUs of a node, scored on field photos as well:
    accelerate launch --config_file accelerate_config.yaml --multi_gpu --num_processes 4 \\
        train_scratch.py --dataset_name AI-Lab-Makerere/beans --model_size small --image_size 224 \\
        --shift_dataset_name field_photos
"""

from agritransfer import data, hub, images, models, runtime, training
from agritransfer.arguments import DataArguments, ScratchArguments


def main(data_args, scratch_args, training_args):
    with training.start_run(data_args, scratch_args, training_args) as run:
        # Hub: checked before the first step, so that an invalid token fails within seconds
        destination = hub.destination_of(training_args, data_args.share_splits, data_args.license)

        # Photos: the train, validation and test splits
        splits, shift = data.load_photos(data_args)
        run.end_stage("photos")

        # Model: random weights and a matching image processor
        base_model = None
        model, processor, architecture = models.load_untrained(scratch_args, data_args, splits.labels)
        if data_args.download_only:
            runtime.say("downloaded; to train offline, set HF_HUB_OFFLINE=1 and remove --download_only")
            return

        # Strategy: all weights are trained
        run.end_stage("model", models.trainable_line(model))

        # Trainer: photos are decoded once, for this run and later ones
        store = images.PixelStore(data_args.pixel_store, data_args.pixel_store_gb)
        trainer = training.build_trainer(run, model, processor, splits, store, base_model)
        hub.upload_checkpoints(run, trainer, destination)
        run.end_stage("pixels")

        # Training: resumes from the last complete checkpoint, if any
        training.train(run, trainer, splits, store)
        run.end_stage("training", trainer.times.line())

        # Results: save the best weights, check the saved model, score it and publish it
        training.save_model(trainer, processor, splits, base_model)
        outputs = training.score_run(run, trainer, splits, shift, store)
        training.write_results(run, trainer, splits, shift, outputs, base_model, architecture)
        hub.publish_run(run.folder, destination)


if __name__ == "__main__":
    main(*runtime.parse_args((DataArguments, ScratchArguments), __doc__))
