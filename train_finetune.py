"""Fine-tune a pretrained network: all of its weights, its last blocks, or only a new head (feature extraction).

Fine-tuning, then feature extraction:
    python train_finetune.py --dataset_name sample/leaves --model_name_or_path sample/vit
    python train_finetune.py --dataset_name sample/leaves --model_name_or_path sample/vit \\
        --train_layers head

On all GPUs of a node, with data and model from the Hub, scored on field photos as well:
    accelerate launch --config_file accelerate_config.yaml --multi_gpu --num_processes 4 \\
        train_finetune.py --dataset_name AI-Lab-Makerere/beans \\
        --model_name_or_path facebook/dinov2-small --shift_dataset_name field_photos
"""

from agritransfer import data, hub, images, models, runtime, training
from agritransfer.arguments import DataArguments, FinetuneArguments, ModelArguments


def main(data_args, model_args, finetune_args, training_args):
    with training.start_run(data_args, model_args, finetune_args, training_args) as run:
        # Hub: checked before the first step, so that an invalid token fails within seconds
        destination = hub.destination_of(training_args, data_args.share_splits, data_args.license)

        # Photos: the train, validation and test splits
        splits, shift = data.load_photos(data_args)
        run.end_stage("photos")

        # Model: pretrained weights, a new head for these labels, and the matching image processor
        model, processor, base_model = models.load_backbone(model_args, data_args, splits.labels)
        if data_args.download_only:
            runtime.say("downloaded; to train offline, set HF_HUB_OFFLINE=1 and remove --download_only")
            return

        # Strategy: which weights are trained, and at which learning rate
        models.train_layers(model, finetune_args.train_layers)
        parameter_groups = models.parameter_groups_of(model, finetune_args, training_args)
        run.end_stage("model", models.trainable_line(model))

        # Trainer: photos are decoded once, for this run and later ones
        store = images.PixelStore(data_args.pixel_store, data_args.pixel_store_gb)
        trainer = training.build_trainer(run, model, processor, splits, store, base_model, parameter_groups)
        hub.upload_checkpoints(run, trainer, destination)
        run.end_stage("pixels")

        # Training: resumes from the last complete checkpoint, if any
        if finetune_args.head_first:
            training.begin_with_solved_head(trainer, splits.dataset("train", processor, store))
        if finetune_args.solves_head(data_args):
            training.solve_head(trainer, data_args.cached_views)
        else:
            training.train(run, trainer, splits, store)
        run.end_stage("training", trainer.times.line())

        # Results: save the best weights, check the saved model, score it and publish it
        training.save_model(trainer, processor, splits, base_model)
        outputs = training.score_run(run, trainer, splits, shift, store)
        training.write_results(run, trainer, splits, shift, outputs, base_model)
        hub.publish_run(run.folder, destination)


if __name__ == "__main__":
    main(*runtime.parse_args((DataArguments, ModelArguments, FinetuneArguments), __doc__))
