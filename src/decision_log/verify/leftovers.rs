//! Every other file below `tile/`: earlier partial forms must agree with what has grown out of
//! them, and nothing else may lie there.

use std::io;

use super::{Files, VerifyFault, WIDTH, damaged};

/// Directories within directories: `tile`, a level, seven groups, one `.p`.
const DEPTH_MAX: usize = 10;

/// Looks at every file; the number of those beyond the checkpoint.
pub(super) fn check(files: &mut Files, size: u64) -> Result<u64, VerifyFault> {
    let mut walk = Walk { size, beyond: 0, seen: Vec::new(), grown: Vec::new() };
    walk.directory(files, "tile", 0)?;
    Ok(walk.beyond)
}

struct Walk {
    size: u64,
    beyond: u64,
    seen: Vec<u8>,
    grown: Vec<u8>,
}

/// A file's place: kind, index, width.
struct Place {
    kind: String,
    index: u64,
    width: u64,
}

impl Walk {
    fn directory(
        &mut self,
        files: &mut Files,
        path: &str,
        depth: usize,
    ) -> Result<(), VerifyFault> {
        let unreadable = |source| VerifyFault::Unreadable { file: path.to_owned(), source };
        let entries = match std::fs::read_dir(files.dir.join(path)) {
            // Gone since it was listed, or a log without records.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other.map_err(unreadable)?,
        };
        for entry in entries {
            let entry = entry.map_err(unreadable)?;
            let name = format!("{path}/{}", entry.file_name().to_string_lossy());
            let kind = entry.file_type().map_err(unreadable)?;
            if kind.is_dir() && depth < DEPTH_MAX {
                self.directory(files, &name, depth + 1)?;
            } else if kind.is_file() {
                self.file(files, &name)?;
            } else {
                return Err(damaged(&name, None, "it is no file of a log"));
            }
        }
        Ok(())
    }

    fn file(&mut self, files: &mut Files, path: &str) -> Result<(), VerifyFault> {
        let Some(place) = parse(path) else {
            return Err(damaged(path, None, "it is no file of a log"));
        };
        let level: u32 = place.kind.parse().unwrap_or(0);
        let parts = WIDTH.checked_pow(level).map_or(0, |span| self.size / span);
        let start = place.index.saturating_mul(WIDTH);
        if start.saturating_add(place.width) > parts {
            self.beyond += 1;
            return Ok(());
        }
        let grown = (parts - start).min(WIDTH);
        if place.width == grown || place.width == WIDTH {
            return Ok(()); // compared with the records already
        }
        match files.read(path, &mut self.seen, WIDTH * 65_537) {
            // A log in use drops partial forms once the full one is there.
            Err(VerifyFault::Unreadable { source, .. })
                if source.kind() == io::ErrorKind::NotFound =>
            {
                return Ok(());
            }
            other => other?,
        }
        files.read_either(&place.kind, place.index, grown, &mut self.grown)?;
        let length = match place.kind.as_str() {
            "entries" => length_of(&self.grown, place.width),
            _ => usize::try_from(place.width * 32).ok(),
        };
        if length.and_then(|length| self.grown.get(..length)) == Some(self.seen.as_slice()) {
            return Ok(());
        }
        let span = WIDTH.saturating_pow(level);
        let what = "it does not agree with what has grown out of it";
        Err(damaged(path, Some(start.saturating_mul(span)), what))
    }
}

/// Bytes of the first `count` records.
fn length_of(bundle: &[u8], count: u64) -> Option<usize> {
    let mut at = 0usize;
    for _ in 0..count {
        let length = u16::from_be_bytes(*bundle.get(at..)?.first_chunk::<2>()?);
        at = at.checked_add(2)?.checked_add(usize::from(length))?;
    }
    Some(at)
}

/// `tile/<kind>/[x000/…]000[.p/<width>]`, in its one form.
fn parse(path: &str) -> Option<Place> {
    let rest = path.strip_prefix("tile/")?;
    let (kind, rest) = rest.split_once('/')?;
    let (name, width) = match rest.split_once(".p/") {
        Some((name, width)) => {
            (name, width.parse().ok().filter(|width| (1..WIDTH).contains(width))?)
        }
        None => (rest, WIDTH),
    };
    let index = name.split('/').try_fold(0u64, |index, group| {
        let digits = group.trim_start_matches('x');
        index.checked_mul(1000)?.checked_add(digits.parse().ok()?)
    })?;
    let is_kind = kind == "entries" || (0..64u8).any(|level| level.to_string() == kind);
    let partial = if width < WIDTH { format!(".p/{width}") } else { String::new() };
    let own = format!("{}{partial}", super::name_of(kind, index));
    (is_kind && own == path).then(|| Place { kind: kind.to_owned(), index, width })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_one_form() {
        let place = parse("tile/entries/x001/x234/067.p/9").unwrap();
        assert_eq!((place.kind.as_str(), place.index, place.width), ("entries", 1_234_067, 9));
        assert_eq!(parse("tile/0/005").unwrap().index, 5);
        for bad in [
            "tile/0/5",
            "tile/0/x000/005",
            "tile/00/005",
            "tile/64/000",
            "tile/0/000.p/256",
            "tile/0/000.p/0",
            "tile/0/000.p/01",
            "tile/x/000",
            "tile/0/000.tmp",
            "tile/0/000.p/1/2",
        ] {
            assert!(parse(bad).is_none(), "{bad}");
        }
    }
}
