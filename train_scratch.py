"""Train a network from random weights: the control that shows what transfer buys.

    python train_scratch.py --dataset_name sample/leaves --model_type vit --model_size nano --output_dir runs/scratch

A convolutional network, with strong augmentation:
    python train_scratch.py --dataset_name sample/leaves --model_type convnextv2 --augmentation strong

On every GPU of a node, scored on field photos too:
    accelerate launch --config_file accelerate_config.yaml --multi_gpu --num_processes 4 train_scratch.py \\
        --dataset_name AI-Lab-Makerere/beans --model_size small --image_size 224 --shift_dataset_name field_photos
"""

from agritransfer.arguments import DataArguments, ScratchArguments, parse_args, settings_line


def main(data_args, scratch_args, training_args):
    # Imported here, so that --help answers before torch is loaded
    from agritransfer.checkpoint_uploads import UploadCheckpoints, fetch_checkpoint
    from agritransfer.data import counts_table, load_shift_photos, load_splits
    from agritransfer.evaluation import compute_metrics
    from agritransfer.memory import PeakMemory
    from agritransfer.models import build_from_scratch
    from agritransfer.pixel_store import PixelStore
    from agritransfer.pixels import build_augmentation, processor_image_size
    from agritransfer.prefix import frozen_prefix
    from agritransfer.publishing import destination_of, publish_run
    from agritransfer.resuming import checkpoint_to_resume, run_settings
    from agritransfer.run_folder import run_folder, save_model, score_run, write_results
    from agritransfer.strategies import trainable_line
    from agritransfer.training import ImageTrainer, class_weights, prepare_process, say

    prepare_process(training_args)
    with run_folder(training_args, data_args.restart) as folder:
        memory = PeakMemory()
        say(settings_line(data_args, scratch_args, training_args))

        # Hub: asked before the first step, so that a wrong token costs seconds
        destination = destination_of(training_args, data_args.share_splits, data_args.license)

        # Photos: who is in which split, every one decoded once
        splits = load_splits(data_args.dataset_name, **data_args.split_options())
        splits, shift = load_shift_photos(data_args.shift_dataset_name, splits, **data_args.shift_options())
        say(*map(counts_table, filter(None, [splits, shift])), memory.line("photos"))

        # Model
        base_model = None
        model, processor = build_from_scratch(
            scratch_args.model_type, scratch_args.model_size, splits.labels, data_args.image_size
        )
        image_size = processor_image_size(processor)

        if data_args.download_only:
            say("downloaded; now HF_HUB_OFFLINE=1 and the same command without --download_only")
            return

        # Strategy: every weight moves
        say(trainable_line(model), memory.line("model"))

        # Pixels: decoded once, for this run and for those to come
        store = PixelStore(data_args.pixel_store, data_args.pixel_store_gb)
        train_photos = splits.training_photos(processor, data_args.augmentation, store)
        validation_photos = splits.dataset("validation", processor, store)
        say(store.line(), memory.line("pixels"))

        # Training, from the last complete checkpoint where there is one
        trainer = ImageTrainer(
            model=model,
            args=training_args,
            settings=run_settings(splits, base_model, data_args, scratch_args, training_args),
            processor=processor,
            train_dataset=train_photos,
            eval_dataset=validation_photos,
            augment=build_augmentation(data_args.augmentation, image_size, len(splits.labels)),
            class_weights=class_weights(data_args.class_weights, splits.label_counts("train")),
            early_stopping_patience=data_args.early_stopping_patience,
            compute_metrics=compute_metrics,
        )
        if destination is not None:
            trainer.add_callback(UploadCheckpoints(destination, processor))
            fetch_checkpoint(folder, destination, data_args.restart)
        with frozen_prefix(trainer, splits, data_args.cached_views, data_args.augmentation, store.limit):
            trainer.train(resume_from_checkpoint=checkpoint_to_resume(training_args, trainer.settings))
        say(trainer.times.line(), memory.line("training"))

        # Run folder: the best weights, proven on disk, then scored from there
        save_model(trainer, processor, splits, base_model)
        outputs = score_run(folder, splits, shift, training_args.per_device_eval_batch_size, store)
        write_results(
            folder, trainer, splits, shift, outputs, memory, scratch_args.strategy, base_model, data_args.target_error
        )
        publish_run(folder, destination)


if __name__ == "__main__":
    main(*parse_args((DataArguments, ScratchArguments), __doc__))
