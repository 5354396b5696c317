//! Whether what lies below `/` is encrypted, or checked by dm-verity.
//!
//! The device-mapper's own uuids say so, from the file system's device down through whatever it is
//! stacked on. Every path must pass such a layer: a volume over one encrypted and one plain disk is
//! not encrypted. dm-verity is integrity, and never counts as encryption.

use std::io;
use std::path::{Path, PathBuf};

use super::read_bounded;

/// Layers below each other; real stacks have four.
const DEPTH_MAX: usize = 8;
/// Devices below one another in all: bounds a walk through a wide array of disks.
const DEVICES_MAX: usize = 512;

/// What a layer can do for all that lies above it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layer {
    /// LUKS or plain dm-crypt.
    Crypt,
    /// dm-verity.
    Verity,
}

impl Layer {
    fn is(self, uuid: &str) -> bool {
        match self {
            // `CRYPT-VERITY-…` begins like these do not.
            Self::Crypt => uuid.starts_with("CRYPT-LUKS") || uuid.starts_with("CRYPT-PLAIN"),
            Self::Verity => uuid.starts_with("CRYPT-VERITY-"),
        }
    }
}

/// Whether every path below the block device `major:minor` passes such a layer. `blocks` is
/// `/sys/dev/block`.
///
/// # Errors
/// `NotFound` where no block device stands behind it (overlay, network, btrfs); otherwise what
/// reading said, or `InvalidData` for a stack that is too deep or too wide.
pub(super) fn covered(blocks: &Path, (major, minor): (u64, u64), layer: Layer) -> io::Result<bool> {
    let device = blocks.join(format!("{major}:{minor}"));
    device.symlink_metadata()?;
    let mut seen = 0;
    walk(&device, layer, 0, &mut seen)
}

fn walk(device: &Path, layer: Layer, depth: usize, seen: &mut usize) -> io::Result<bool> {
    *seen += 1;
    if depth > DEPTH_MAX || *seen > DEVICES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the stack of devices is too deep"));
    }
    match read_bounded(&device.join("dm/uuid"), 256) {
        Ok(uuid) if layer.is(&String::from_utf8_lossy(&uuid)) => return Ok(true),
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut below = slaves(device)?;
    if below.is_empty() && device.join("partition").exists() {
        below = slaves(&device.join(".."))?; // a partition of an array lies on the array's disks
    }
    for next in &below {
        if !walk(next, layer, depth + 1, seen)? {
            return Ok(false);
        }
    }
    Ok(!below.is_empty())
}

fn slaves(device: &Path) -> io::Result<Vec<PathBuf>> {
    match std::fs::read_dir(device.join("slaves")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
        Ok(entries) => entries.take(DEVICES_MAX).map(|entry| Ok(entry?.path())).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{create_dir_all, write};

    /// Makes a device of that number, with a dm uuid, on these others.
    fn device(root: &Path, number: &str, uuid: Option<&str>, on: &[&str]) {
        let device = root.join(number);
        create_dir_all(device.join("slaves")).unwrap();
        if let Some(uuid) = uuid {
            create_dir_all(device.join("dm")).unwrap();
            write(device.join("dm/uuid"), uuid).unwrap();
        }
        for below in on {
            std::os::unix::fs::symlink(root.join(below), device.join("slaves").join(below))
                .unwrap();
        }
    }

    fn both(root: &Path, minor: u64) -> (bool, bool) {
        let is = |layer| covered(root, (253, minor), layer).unwrap();
        (is(Layer::Crypt), is(Layer::Verity))
    }

    #[test]
    fn every_path_must_pass_the_layer() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        device(root, "8:1", None, &[]);
        device(root, "8:2", None, &[]);
        device(root, "253:0", Some("CRYPT-LUKS2-00-luks"), &["8:1"]);
        device(root, "253:1", Some("LVM-abc"), &["253:0"]);
        assert_eq!(both(root, 0), (true, false));
        assert_eq!(both(root, 1), (true, false), "a volume on an encrypted disk");
        device(root, "253:2", Some("LVM-def"), &["253:0", "8:2"]);
        assert_eq!(both(root, 2), (false, false), "half of it is plain");
        device(root, "253:3", Some("CRYPT-VERITY-00-root"), &["8:1"]);
        assert_eq!(both(root, 3), (false, true), "verity is not encryption");
        device(root, "253:4", Some("CRYPT-VERITY-00-root"), &["253:0"]);
        assert_eq!(both(root, 4), (true, true));
        device(root, "253:5", Some("CRYPT-PLAIN-x"), &["8:1"]);
        assert_eq!(both(root, 5), (true, false));
        device(root, "253:6", Some("CRYPT-INTEGRITY-x"), &["8:1"]);
        assert_eq!(both(root, 6), (false, false));
        device(root, "253:7", None, &[]);
        assert_eq!(both(root, 7), (false, false), "a plain disk");
    }

    #[test]
    fn no_device_is_absent_and_a_circle_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let kind = |minor| covered(dir.path(), (0, minor), Layer::Crypt).unwrap_err().kind();
        assert_eq!(kind(45), io::ErrorKind::NotFound);
        device(dir.path(), "0:1", None, &["0:1"]);
        assert_eq!(kind(1), io::ErrorKind::InvalidData);
    }
}
