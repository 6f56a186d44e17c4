//! A clustering of the vocabulary: made by [`kmeans`](super::kmeans), saved, loaded again, or imported from elsewhere.

mod torch_file;

use super::key_space::Rows;
use super::kmeans::members;
use crate::error::{Error, Result, io_error};
use crate::manifest::sha256;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::Value;
use std::collections::HashMap;
use std::path::Path;

/// Name of the tensor of cluster ids, `[V]`.
const IDS: &str = "cluster_ids";
/// Name of the tensor of centres, `[K, dim]`.
const CENTRES: &str = "centres";
/// Metadata key of the settings, as JSON.
const SETTINGS: &str = "settings";

/// Which cluster every id of the vocabulary belongs to.
#[derive(Debug, Clone, PartialEq)]
pub struct Clustering {
    /// Cluster of every id.
    pub ids: Vec<u32>,
    /// K; some may be empty.
    pub clusters: usize,
    /// Centres in the space that was clustered; `None` for imported ids.
    pub centres: Option<Rows>,
    /// How it was made; null for imported ids.
    pub settings: Value,
}

impl Clustering {
    /// A clustering from its ids alone.
    pub fn imported(ids: Vec<u32>) -> Self {
        Self {
            clusters: ids.iter().max().map_or(0, |&most| most as usize + 1),
            ids,
            centres: None,
            settings: Value::Null,
        }
    }

    /// Ids of every cluster, ascending.
    pub fn members(&self) -> Vec<Vec<u32>> {
        members(&self.ids, self.clusters)
    }

    /// Keys in every cluster.
    pub fn sizes(&self) -> Vec<usize> {
        self.members().iter().map(Vec::len).collect()
    }

    /// Hash of the ids.
    pub fn hash(&self) -> String {
        sha256(bytemuck::cast_slice::<u32, u8>(&self.ids))
    }

    /// Refuses a clustering of another vocabulary.
    pub fn check(&self, vocab_size: usize, place: &Path) -> Result<()> {
        if self.ids.len() == vocab_size {
            return Ok(());
        }
        Err(Error::user(format!(
            "`{}` clusters {} ids, but the model has {vocab_size} rows of keys",
            place.display(),
            self.ids.len()
        ))
        .help("name the clustering of this model, or make one with `tokselect icn-probe clusters -o DIR`"))
    }

    /// The safetensors file that [`Clustering::load`] reads.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let failed = |e: safetensors::SafeTensorError| Error::bug(format!("a clustering cannot be written: {e}"));
        let ids: &[u8] = bytemuck::cast_slice(&self.ids);
        let view = TensorView::new(Dtype::U32, vec![self.ids.len()], ids).map_err(failed)?;
        let mut views = vec![(IDS, view)];
        if let Some(centres) = &self.centres {
            let shape = vec![centres.count(), centres.dim];
            let data: &[u8] = bytemuck::cast_slice(&centres.data);
            views.push((CENTRES, TensorView::new(Dtype::F32, shape, data).map_err(failed)?));
        }
        let about = HashMap::from([(SETTINGS.to_owned(), self.settings.to_string())]);
        safetensors::serialize(views, Some(about)).map_err(failed)
    }

    /// Reads a saved clustering (`.safetensors`), or cluster ids alone: a JSON list, a text of one id per line, or a tensor
    /// saved by `PyTorch` (`.pt`), as the paper's authors publish theirs.
    pub fn load(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|e| io_error("read", path, &e))?;
        let loaded = match path.extension().and_then(|end| end.to_str()) {
            Some("safetensors") => Self::from_safetensors(&bytes),
            Some("pt" | "pth") => torch_file::integers(&bytes).and_then(ids_of),
            Some("json") => serde_json::from_slice::<Vec<i64>>(&bytes)
                .map_err(|e| e.to_string())
                .and_then(ids_of),
            Some("txt" | "csv") => String::from_utf8_lossy(&bytes)
                .split_whitespace()
                .map(|word| word.parse::<i64>().map_err(|_| format!("`{word}` is no cluster id")))
                .collect::<std::result::Result<_, _>>()
                .and_then(ids_of),
            _ => Err("its name has none of the known endings".to_owned()),
        };
        loaded.map_err(|what| {
            Error::user(format!("`{}` is no clustering: {what}", path.display())).help(
                "name a .safetensors file of `icn-probe clusters`, or ids in token order as .json (a list), .txt (one \
                 a line) or .pt (a tensor of integers)",
            )
        })
    }

    fn from_safetensors(bytes: &[u8]) -> std::result::Result<Self, String> {
        let tensors = SafeTensors::deserialize(bytes).map_err(|e| e.to_string())?;
        let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(|e| e.to_string())?;
        let view = tensors.tensor(IDS).map_err(|_| format!("it has no tensor `{IDS}`"))?;
        let numbers: Vec<i64> = match view.dtype() {
            Dtype::U32 => view
                .data()
                .chunks_exact(4)
                .map(|b| i64::from(u32::from_le_bytes([b[0], b[1], b[2], b[3]])))
                .collect(),
            Dtype::I32 => view
                .data()
                .chunks_exact(4)
                .map(|b| i64::from(i32::from_le_bytes([b[0], b[1], b[2], b[3]])))
                .collect(),
            Dtype::I64 => torch_file::long_integers(view.data()),
            other => return Err(format!("`{IDS}` holds {other:?}, not integers")),
        };
        let mut clustering = ids_of(numbers)?;
        if let Ok(centres) = tensors.tensor(CENTRES) {
            let [count, dim] = *centres.shape() else {
                return Err(format!("`{CENTRES}` is no matrix"));
            };
            if centres.dtype() != Dtype::F32 || count < clustering.clusters {
                return Err(format!("`{CENTRES}` does not fit the cluster ids"));
            }
            let floats = centres.data().chunks_exact(4);
            let data = floats.map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
            clustering.clusters = count;
            clustering.centres = Some(Rows { data, dim });
        }
        let about = metadata.metadata().as_ref().and_then(|map| map.get(SETTINGS));
        clustering.settings = about
            .and_then(|text| serde_json::from_str(text).ok())
            .unwrap_or_default();
        Ok(clustering)
    }
}

/// Checks imported numbers.
fn ids_of(numbers: Vec<i64>) -> std::result::Result<Clustering, String> {
    if numbers.is_empty() {
        return Err("it holds no ids".into());
    }
    // No clustering has more clusters than keys, and no list of clusters should be made that long by a slip.
    let most = numbers.len() as i64;
    let wrong = numbers.iter().position(|&id| !(0..most).contains(&id));
    if let Some(at) = wrong {
        return Err(format!("token {at} has the cluster id {}", numbers[at]));
    }
    Ok(Clustering::imported(numbers.into_iter().map(|id| id as u32).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_saved_clustering_comes_back() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("clusters.safetensors");
        let clustering = Clustering {
            ids: vec![2, 0, 2, 1],
            clusters: 4,
            centres: Some(Rows {
                data: (0..8).map(|x| x as f32 / 3.0).collect(),
                dim: 2,
            }),
            settings: serde_json::json!({"seed": 7, "distance": "cosine"}),
        };
        std::fs::write(&path, clustering.to_bytes().expect("writes")).expect("a writable folder");
        assert_eq!(Clustering::load(&path).expect("reads"), clustering);
        assert_eq!(clustering.sizes(), [1, 1, 2, 0]);
        assert!(
            clustering
                .check(5, &path)
                .expect_err("5 keys")
                .to_string()
                .contains("4 ids")
        );
    }

    #[test]
    fn ids_are_imported_and_faults_are_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let load = |name: &str, text: &[u8]| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).expect("a writable folder");
            Clustering::load(&path)
        };
        assert_eq!(load("a.json", b"[1, 0, 1]").expect("reads").ids, [1, 0, 1]);
        assert_eq!(load("a.txt", b"1\n0\n1\n").expect("reads").ids, [1, 0, 1]);
        for (name, text, wanted) in [
            ("a.json", &b"[]"[..], "holds no ids"),
            ("a.json", b"[0, -1]", "token 1 has the cluster id -1"),
            ("a.json", b"[0, 9]", "token 1 has the cluster id 9"),
            ("a.json", b"{}", "is no clustering"),
            ("a.txt", b"1 x", "`x` is no cluster id"),
            ("a.bin", b"", "endings"),
            ("a.pt", b"not a zip", "is no clustering"),
            ("a.safetensors", b"12", "is no clustering"),
        ] {
            let error = load(name, text).expect_err(wanted).to_string();
            assert!(error.contains(wanted) && error.contains("help:"), "{error}");
        }
    }
}
