//! A safetensors checkpoint: headers checked before anything is computed, tensors mapped from disk one at a time.

use super::config::ModelConfig;
use super::weights::{RowReader, TensorData, TensorSpec, tensor_specs};
use crate::error::{Error, Result, io_error};
use half::{bf16, f16};
use safetensors::tensor::{Dtype, Metadata};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Bytes of the length that a safetensors file starts with.
const LENGTH_BYTES: u64 = 8;
/// No real header is larger; a larger one is a wrong file.
const LARGEST_HEADER: u64 = 100_000_000;
const REMEDY: &str = "the file is cut off or damaged; copy or download it again";

struct Located {
    file: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    /// From the start of the file.
    offset: u64,
    bytes: usize,
}

/// An opened checkpoint.
pub struct Checkpoint {
    files: Vec<(PathBuf, File)>,
    tensors: BTreeMap<String, Located>,
}

impl Checkpoint {
    /// Opens the shards in `files` and, if there is an index, checks that it tells the truth about them.
    pub fn open(files: &[PathBuf], index: Option<&Path>) -> Result<Self> {
        let mut checkpoint = Self {
            files: Vec::new(),
            tensors: BTreeMap::new(),
        };
        for path in files {
            checkpoint.add_file(path)?;
        }
        if let Some(index) = index {
            checkpoint.check_index(index)?;
        }
        Ok(checkpoint)
    }

    fn add_file(&mut self, path: &Path) -> Result<()> {
        let name = path.display();
        let mut file = File::open(path).map_err(|e| io_error("open", path, &e))?;
        let size = file.metadata().map_err(|e| io_error("read", path, &e))?.len();
        if size < LENGTH_BYTES {
            return Err(Error::user(format!(
                "`{name}` is truncated: {size} bytes, less than the {LENGTH_BYTES} of the header length"
            ))
            .help(REMEDY));
        }
        let mut length = [0; LENGTH_BYTES as usize];
        file.read_exact(&mut length).map_err(|e| io_error("read", path, &e))?;
        let length = u64::from_le_bytes(length);
        if length > LARGEST_HEADER {
            return Err(Error::user(format!(
                "`{name}` is not a safetensors file: it states a header of {length} bytes"
            ))
            .help("pass a file in safetensors format; convert other formats with the library that wrote them"));
        }
        let data_start = LENGTH_BYTES + length;
        if size < data_start {
            return Err(Error::user(format!(
                "`{name}` is truncated: {size} bytes, but the header alone ends at byte {data_start}"
            ))
            .help(REMEDY));
        }
        let mut header = vec![0; length as usize];
        file.read_exact(&mut header).map_err(|e| io_error("read", path, &e))?;
        let metadata: Metadata = serde_json::from_slice(&header).map_err(|e| {
            Error::user(format!("`{name}`: the safetensors header is not valid: {e}"))
                .help("the file is damaged, or of a newer form than can be read; copy or download it again")
        })?;
        let number = self.files.len();
        let mut data_end = data_start;
        for (tensor, info) in metadata.tensors() {
            let (start, end) = info.data_offsets;
            let end_in_file = data_start + end as u64;
            data_end = data_end.max(end_in_file);
            if end_in_file > size {
                return Err(Error::user(format!(
                    "`{name}` is truncated: {size} bytes, but tensor `{tensor}` ends at byte {end_in_file}"
                ))
                .help(REMEDY));
            }
            let elements = info.shape.iter().try_fold(1usize, |product, &n| product.checked_mul(n));
            if elements.and_then(|n| n.checked_mul(info.dtype.bitsize())) != Some((end - start) * 8) {
                return Err(Error::user(format!(
                    "`{name}`: tensor `{tensor}` of shape {:?} and type {:?} does not fill its {} bytes",
                    info.shape,
                    info.dtype,
                    end - start
                ))
                .help(REMEDY));
            }
            let located = Located {
                file: number,
                dtype: info.dtype,
                shape: info.shape.clone(),
                offset: data_start + start as u64,
                bytes: end - start,
            };
            if let Some(other) = self.tensors.insert(tensor.clone(), located) {
                return Err(Error::user(format!(
                    "tensor `{tensor}` is in `{}` and again in `{name}`",
                    self.files[other.file].0.display()
                ))
                .help("remove the shard that does not belong to the checkpoint"));
            }
        }
        if size > data_end {
            return Err(Error::user(format!(
                "`{name}` is longer than its header says: {size} bytes, but the last tensor ends at byte {data_end}"
            ))
            .help("two files were joined or a download went wrong; copy or download it again"));
        }
        self.files.push((path.to_owned(), file));
        Ok(())
    }

    fn check_index(&self, index: &Path) -> Result<()> {
        let bytes = std::fs::read(index).map_err(|e| io_error("read", index, &e))?;
        let value: serde_json::Value = serde_json::from_slice(&bytes)
            .map_err(|e| Error::user(format!("`{}` is not valid JSON: {e}", index.display())).help(REMEDY))?;
        let Some(map) = value.get("weight_map").and_then(serde_json::Value::as_object) else {
            return Err(Error::user(format!("`{}` has no object `weight_map`", index.display())).help(REMEDY));
        };
        for (tensor, shard) in map {
            let shard = shard.as_str().unwrap_or_default();
            match self.tensors.get(tensor) {
                None => {
                    return Err(Error::user(format!(
                        "`{}` places tensor `{tensor}` in `{shard}`, which does not hold it",
                        index.display()
                    ))
                    .help(
                        "index and shards are of different checkpoints, or a shard is damaged; download both again",
                    ));
                }
                Some(found) if self.files[found.file].0.file_name().is_some_and(|f| f != shard) => {
                    return Err(Error::user(format!(
                        "`{}` places tensor `{tensor}` in `{shard}`, but it is in `{}`",
                        index.display(),
                        self.files[found.file].0.display()
                    ))
                    .help("index and shards are of different checkpoints; download both again"));
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    /// Checks names, shapes and types of every tensor against `config`.
    pub fn check(&self, config: &ModelConfig) -> Result<()> {
        let specs = tensor_specs(config);
        for spec in &specs {
            let Some(found) = self.tensors.get(&spec.name) else {
                let mut error = Error::user(format!("tensor `{}` is missing from {}", spec.name, self.all_files()))
                    .note(format!("expected shape {:?}", spec.shape));
                if spec.name == "lm_head.weight" {
                    error = error.note("the config says `tie_word_embeddings: false`");
                }
                return Err(error.help("config.json and weights are of different models, or a shard was not given"));
            };
            let file = self.files[found.file].0.display();
            if found.shape != spec.shape {
                return Err(Error::user(format!(
                    "`{file}`: tensor `{}` has shape {:?}, expected {:?}",
                    spec.name, found.shape, spec.shape
                ))
                .help("config.json and weights are of different models"));
            }
            if !matches!(found.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
                return Err(Error::user(format!(
                    "`{file}`: tensor `{}` is of type {:?}, expected F32, F16 or BF16",
                    spec.name, found.dtype
                ))
                .help("quantised checkpoints are not supported; use the unquantised one"));
            }
        }
        let expected: std::collections::BTreeSet<&str> = specs.iter().map(|s| s.name.as_str()).collect();
        let extra = self.tensors.keys().find(|name| {
            // Old checkpoints carry rotary buffers, tied ones sometimes the unembedding: both are derived data.
            let derived =
                name.ends_with("rotary_emb.inv_freq") || (config.tied_embeddings && *name == "lm_head.weight");
            !expected.contains(name.as_str()) && !derived
        });
        if let Some(name) = extra {
            let found = &self.tensors[name];
            return Err(Error::user(format!(
                "`{}`: tensor `{name}` of shape {:?} has no place in a model of this config",
                self.files[found.file].0.display(),
                found.shape
            ))
            .note(format!(
                "model_type {:?}, {} layers, qkv bias {}",
                config.family, config.layers, config.qkv_bias
            ))
            .help("config.json and weights are of different models"));
        }
        Ok(())
    }

    fn all_files(&self) -> String {
        match self.files.as_slice() {
            [(one, _)] => format!("`{}`", one.display()),
            many => format!("all {} shards", many.len()),
        }
    }

    /// The file that holds `name`.
    pub fn file_of(&self, name: &str) -> Option<&Path> {
        self.tensors.get(name).map(|t| self.files[t.file].0.as_path())
    }

    /// Maps one tensor; the mapping lives as long as the result, so that at most one matrix is mapped at a time.
    pub(super) fn map(&self, spec: &TensorSpec) -> Result<MappedTensor> {
        let missing = || Error::bug(format!("tensor `{}` was not checked before loading", spec.name));
        let found = self.tensors.get(&spec.name).ok_or_else(missing)?;
        let (path, file) = &self.files[found.file];
        let map = vmap::Map::with_options()
            .offset(found.offset as usize)
            .len(found.bytes)
            .map(file)
            .map_err(|e| Error::environment(format!("cannot map `{}` into memory: {e}", path.display())))?;
        Ok(MappedTensor {
            map,
            dtype: found.dtype,
            cols: spec.cols(),
        })
    }
}

/// The bytes of one tensor, mapped from disk.
pub struct MappedTensor {
    map: vmap::Map,
    dtype: Dtype,
    cols: usize,
}

impl TensorData for MappedTensor {
    fn rows(&self) -> RowReader<'_> {
        let (bytes, dtype) = (&self.map[..], self.dtype);
        let width = self.cols * dtype.bitsize() / 8;
        Box::new(move |row, out| {
            let bytes = &bytes[row * width..][..width];
            match dtype {
                Dtype::F32 => widen(bytes, out, f32::from_le_bytes),
                Dtype::F16 => widen(bytes, out, |b: [u8; 2]| f16::from_le_bytes(b).to_f32()),
                _ => widen(bytes, out, |b: [u8; 2]| bf16::from_le_bytes(b).to_f32()),
            }
        })
    }
}

fn widen<const N: usize>(bytes: &[u8], out: &mut [f32], convert: impl Fn([u8; N]) -> f32) {
    for (value, bytes) in out.iter_mut().zip(bytes.as_chunks::<N>().0) {
        *value = convert(*bytes);
    }
}
