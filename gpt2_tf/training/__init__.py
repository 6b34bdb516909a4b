"""Fine-tuning and training from scratch with Keras; a stopped run resumes exactly.

train            what `gpt2-tf train` does: start a run or resume it
settings         the settings of a run, with defaults and ranges
fit              the training loop: Keras's `fit`, from the last saved step to the end
input_pipeline   token ids -> batches, divided among the replicas
optimizer        AdamW with a warm-up and a cosine schedule
callbacks        Keras callbacks that save, evaluate, log and show samples
run_folder       the files of a run's folder; saving and restoring a step
flops            the arithmetic of training, for the speed in the log
loss_plot        loss.png
"""

from gpt2_tf.lazy import public_names

public_names(
    __name__,
    {
        "AdamW": "gpt2_tf.training.optimizer:AdamW",
        "Best": "gpt2_tf.training.callbacks:Best",
        "Every": "gpt2_tf.training.callbacks:Every",
        "Log": "gpt2_tf.training.callbacks:Log",
        "StopAtNaN": "gpt2_tf.training.callbacks:StopAtNaN",
        "Throughput": "gpt2_tf.training.callbacks:Throughput",
        "TrainingSettings": "gpt2_tf.training.settings:TrainingSettings",
        "adamw": "gpt2_tf.training.optimizer:adamw",
        "draw_losses": "gpt2_tf.training.loss_plot:draw_losses",
        "fit": "gpt2_tf.training.fit:fit",
        "flops_per_token": "gpt2_tf.training.flops:flops_per_token",
        "latest_step": "gpt2_tf.training.run_folder:latest_step",
        "matmul_peak": "gpt2_tf.training.flops:matmul_peak",
        "run_training": "gpt2_tf.training.train:run_training",
    },
)
