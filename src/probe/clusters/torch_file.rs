//! One tensor of integers out of a file of `torch.save`: a zip archive without compression whose entry `NAME/data/0` holds
//! the elements and whose `NAME/data.pkl` names their type. Nothing is unpickled.

/// Little-endian 64-bit integers.
pub(super) fn long_integers(bytes: &[u8]) -> Vec<i64> {
    let (words, _) = bytes.as_chunks::<8>();
    words.iter().map(|word| i64::from_le_bytes(*word)).collect()
}

fn number(bytes: &[u8], at: usize, width: usize) -> Option<usize> {
    let part = bytes.get(at..at + width)?;
    Some(part.iter().rev().fold(0, |sum, &byte| sum << 8 | usize::from(byte)))
}

/// Name and contents of every entry; `None` for a file of another form.
fn entries(bytes: &[u8]) -> Option<Vec<(String, &[u8])>> {
    // The directory's end record lies in the last 64 KiB and a little.
    let tail = bytes.len().saturating_sub(66_000);
    let end = tail + bytes[tail..].windows(4).rposition(|mark| mark == b"PK\x05\x06")?;
    let count = number(bytes, end + 10, 2)?;
    let mut at = number(bytes, end + 16, 4)?;
    let mut all = Vec::new();
    for _ in 0..count {
        if bytes.get(at..at + 4)? != b"PK\x01\x02" || number(bytes, at + 10, 2)? != 0 {
            return None;
        }
        let size = number(bytes, at + 20, 4)?;
        let lengths = [28, 30, 32].map(|offset| number(bytes, at + offset, 2));
        let [Some(name), Some(extra), Some(comment)] = lengths else {
            return None;
        };
        let local = number(bytes, at + 42, 4)?;
        let text = String::from_utf8_lossy(bytes.get(at + 46..at + 46 + name)?).into_owned();
        let data = local + 30 + number(bytes, local + 26, 2)? + number(bytes, local + 28, 2)?;
        all.push((text, bytes.get(data..data + size)?));
        at += 46 + name + extra + comment;
    }
    Some(all)
}

/// The elements of the one tensor in a file of `torch.save`.
pub(super) fn integers(bytes: &[u8]) -> Result<Vec<i64>, String> {
    let entries = entries(bytes).ok_or("it is no tensor saved by PyTorch 1.6 or later")?;
    let find = |end: &str| {
        entries
            .iter()
            .find(|(name, _)| name.ends_with(end))
            .map(|(_, data)| *data)
    };
    let (Some(about), Some(data)) = (find("/data.pkl"), find("/data/0")) else {
        return Err("it holds no tensor".into());
    };
    if find("/data/1").is_some() {
        return Err("it holds more than one tensor".into());
    }
    let says = |word: &str| about.windows(word.len()).any(|part| part == word.as_bytes());
    if says("LongStorage") {
        Ok(long_integers(data))
    } else if says("IntStorage") {
        let (words, _) = data.as_chunks::<4>();
        Ok(words.iter().map(|word| i64::from(i32::from_le_bytes(*word))).collect())
    } else {
        Err("its tensor holds no 32- or 64-bit integers".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `torch.save(torch.tensor([3, 0, 2, 1, 0]), "cluster_ids.pt")` of `PyTorch` 2.
    const SAVED: &[u8] = include_bytes!("../../../tests/fixtures/cluster_ids.pt");

    #[test]
    fn a_tensor_of_pytorch_is_read() {
        assert_eq!(integers(SAVED), Ok(vec![3, 0, 2, 1, 0]));
    }

    #[test]
    fn damaged_files_are_refused_without_a_panic() {
        for cut in 0..SAVED.len() {
            let _ = integers(&SAVED[..cut]);
            let mut changed = SAVED.to_vec();
            changed[cut] ^= 0xff;
            let _ = integers(&changed);
        }
        assert!(integers(b"").is_err());
    }
}
