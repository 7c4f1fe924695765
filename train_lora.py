"""Adapt a pretrained network with LoRA: its weights stay frozen; low-rank adapters and a new head are trained.

    python train_lora.py --dataset_name sample/leaves --model_name_or_path sample/vit

With other target layers, a lower rank and DoRA:
    python train_lora.py --dataset_name sample/leaves --model_name_or_path sample/vit \\
        --lora_target_modules q_proj v_proj --lora_r 8 --use_dora

On all GPUs of a node, with data and model from the Hub, scored on field photos as well:
    accelerate launch --config_file accelerate_config.yaml --multi_gpu --num_processes 4 \\
        train_lora.py --dataset_name AI-Lab-Makerere/beans \\
        --model_name_or_path facebook/dinov2-small --shift_dataset_name field_photos
"""

from agritransfer import data, hub, images, models, runtime, training
from agritransfer.arguments import DataArguments, LoraArguments, ModelArguments


def main(data_args, model_args, lora_args, training_args):
    with training.start_run(data_args, model_args, lora_args, training_args) as run:
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

        # Strategy: pretrained weights stay frozen; low-rank adapters and the head are trained
        model = models.add_lora(
            model,
            image_size=processor.image_size,
            r=lora_args.lora_r,
            alpha=lora_args.lora_alpha,
            dropout=lora_args.lora_dropout,
            target_modules=lora_args.lora_target_modules,
            use_dora=lora_args.use_dora,
            use_rslora=lora_args.use_rslora,
            layers=lora_args.lora_layers,
        )
        run.end_stage("model", models.trainable_line(model))

        # Trainer: photos are decoded once, for this run and later ones
        store = images.PixelStore(data_args.pixel_store, data_args.pixel_store_gb)
        trainer = training.build_trainer(run, model, processor, splits, store, base_model)
        hub.upload_checkpoints(run, trainer, destination)
        run.end_stage("pixels")

        # Training: resumes from the last complete checkpoint, if any
        if lora_args.head_first:
            training.begin_with_solved_head(trainer, splits.dataset("train", processor, store))
        training.train(run, trainer, splits, store)
        run.end_stage("training", trainer.times.line())

        # Results: save the best weights, check the saved model, score it and publish it
        training.save_model(trainer, processor, splits, base_model)
        outputs = training.score_run(run, trainer, splits, shift, store)
        training.write_results(run, trainer, splits, shift, outputs, base_model)
        hub.publish_run(run.folder, destination)


if __name__ == "__main__":
    main(*runtime.parse_args((DataArguments, ModelArguments, LoraArguments), __doc__))
