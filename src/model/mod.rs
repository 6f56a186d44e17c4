//! The shared model loader, and the one decoder that runs what it loads.
//!
//! [`config`] and [`checkpoint`] read a Hugging Face directory, [`weights`] brings its tensors to a backend,
//! [`decoder`] is the forward pass of every family. [`tokenizer`], [`chat_template`] and [`generation_config`] turn
//! text into ids and back, [`prompt`] applies them to a question; [`sampling`] and [`stop`] end in text. [`memory_plan`] knows what a run needs before it runs.

pub mod chat_template;
pub mod checkpoint;
pub mod config;
pub mod context;
pub mod decoder;
pub mod generate;
pub mod generation_config;
mod json_file;
pub mod memory_plan;
pub mod prompt;
pub mod rope;
pub mod sampling;
pub mod stop;
pub mod stream_decoder;
pub mod tokenizer;
pub mod weights;
