//! Everything a training run needs to go on as if it had never stopped, in one safetensors file.
//!
//! Parameters, both moments and the memories are tensors; counters are JSON in the file's metadata. Random numbers
//! follow from the seed and the step, and the place in the text from the step, so neither has a state of its own.

use super::scalar::Scalar;
use super::trainer::Progress;
use crate::error::{Error, Result, io_error};
use crate::report::replace_file;
use safetensors::tensor::{Dtype, TensorView};
use safetensors::{SafeTensors, serialize};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

const PREFIX: &str = "step-";
const SUFFIX: &str = ".safetensors";
/// File of the checkpoint with the lowest validation loss.
pub const BEST: &str = "best.safetensors";

/// The tensors and counters of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Checkpoint {
    /// Named buffers of f32.
    pub tensors: Vec<(String, Vec<usize>, Vec<f32>)>,
    /// Counters.
    pub progress: Progress,
    /// Hash of the run's configuration.
    pub config_hash: String,
}

#[derive(Serialize, Deserialize)]
struct Header {
    config_hash: String,
    progress: Progress,
}

impl Checkpoint {
    /// Writes the file by renaming a finished one: whenever the process ends, the file there is whole.
    pub fn write(&self, path: &Path) -> Result<()> {
        let header = Header {
            config_hash: self.config_hash.clone(),
            progress: self.progress.clone(),
        };
        let header = serde_json::to_string(&header).map_err(|e| Error::bug(format!("a checkpoint's counters: {e}")))?;
        let metadata = HashMap::from([("tokselect".to_owned(), header)]);
        let mut views = Vec::with_capacity(self.tensors.len());
        for (name, shape, data) in &self.tensors {
            let view = TensorView::new(Dtype::F32, shape.clone(), bytemuck::cast_slice(data));
            views.push((
                name.as_str(),
                view.map_err(|e| Error::bug(format!("tensor `{name}` of a checkpoint: {e}")))?,
            ));
        }
        let bytes = serialize(views, Some(metadata)).map_err(|e| Error::bug(format!("a checkpoint as bytes: {e}")))?;
        replace_file(path, &bytes).map_err(|error| error.note("the checkpoint before it is whole"))
    }

    /// Reads a file that [`Checkpoint::write`] has written.
    pub fn read(path: &Path) -> Result<Self> {
        let broken = |why: String| {
            Error::user(format!("`{}` is not a whole checkpoint: {why}", path.display()))
                .help("remove it to go on from the one before, or choose another `--output` directory")
        };
        let bytes = fs::read(path).map_err(|error| io_error("read", path, &error))?;
        let (_, metadata) = SafeTensors::read_metadata(&bytes).map_err(|e| broken(e.to_string()))?;
        let header = metadata
            .metadata()
            .as_ref()
            .and_then(|metadata| metadata.get("tokselect"));
        let header = header.ok_or_else(|| broken("its counters are missing".into()))?;
        let header: Header = serde_json::from_str(header).map_err(|e| broken(e.to_string()))?;
        let file = SafeTensors::deserialize(&bytes).map_err(|e| broken(e.to_string()))?;
        let mut tensors = Vec::new();
        for (name, view) in file.iter() {
            if view.dtype() != Dtype::F32 {
                return Err(broken(format!("tensor `{name}` is not f32")));
            }
            let (words, _) = view.data().as_chunks::<4>();
            let data = words.iter().map(|word| f32::from_le_bytes(*word)).collect();
            tensors.push((name.to_owned(), view.shape().to_vec(), data));
        }
        Ok(Self {
            tensors,
            progress: header.progress,
            config_hash: header.config_hash,
        })
    }

    /// Takes the tensor `name` out.
    pub fn take(&mut self, name: &str) -> Result<Vec<f32>> {
        let at = self.tensors.iter().position(|(found, ..)| found == name);
        let at = at.ok_or_else(|| Error::user(format!("a checkpoint lacks the tensor `{name}`")))?;
        Ok(self.tensors.swap_remove(at).2)
    }
}

/// The checkpoint file of a step.
pub fn path(folder: &Path, step: u64) -> PathBuf {
    folder.join(format!("{PREFIX}{step:09}{SUFFIX}"))
}

/// Steps of the checkpoints in `folder`, rising.
pub fn steps(folder: &Path) -> Result<Vec<u64>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(io_error("read", folder, &error)),
    };
    let step = |name: &str| name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?.parse().ok();
    let mut steps: Vec<u64> = entries
        .flatten()
        .filter_map(|entry| step(entry.file_name().to_str()?))
        .collect();
    steps.sort_unstable();
    Ok(steps)
}

/// Removes all but the last `keep` checkpoints of steps.
pub fn prune(folder: &Path, keep: usize) -> Result<()> {
    let steps = steps(folder)?;
    for step in &steps[..steps.len().saturating_sub(keep.max(1))] {
        let path = path(folder, *step);
        fs::remove_file(&path).map_err(|error| io_error("remove", &path, &error))?;
    }
    Ok(())
}

/// The elements as f32, exact for f32 runs.
pub fn to_f32<T: Scalar>(data: &[T]) -> Vec<f32> {
    data.iter().map(|value| value.f64() as f32).collect()
}
