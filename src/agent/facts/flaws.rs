//! What the kernel says of the processor's flaws, and what its command line takes away.
//!
//! The list of words is closed and errs on the short side: a word that is not in it says nothing. Words
//! that stand there twice count by the last, as the kernel reads them; a word that cannot be
//! understood is told rather than passed over.

use std::path::Path;

use super::{Reading, read_bounded, reason};
use crate::posture::Unknown;

/// The kernel knows some twenty flaws.
const FLAWS_MAX: usize = 256;
/// One of them is a line.
const FLAW_MAX: u64 = 4096;

/// Words of a kernel's command line that take a protection away (admin-guide/kernel-parameters).
const WEAK: &[&str] = &[
    "apparmor=0",
    "enforcing=0",
    "ima_appraise=fix",
    "ima_appraise=log",
    "ima_appraise=off",
    "init_on_alloc=0",
    "iommu=off",
    "kvm.nx_huge_pages=off",
    "l1tf=off",
    "mds=off",
    "mitigations=off",
    "module.sig_enforce=0",
    "no_hash_pointers",
    "nokaslr",
    "nopti",
    "nosmap",
    "nosmep",
    "nospec_store_bypass_disable",
    "nospectre_v1",
    "nospectre_v2",
    "pti=off",
    "randomize_kstack_offset=off",
    "retbleed=off",
    "selinux=0",
    "spec_store_bypass_disable=off",
    "spectre_v2=off",
    "srbds=off",
    "tsx_async_abort=off",
];

/// How many of the processor's flaws stand as `Vulnerable`.
pub(super) fn vulnerable(dir: &Path) -> Reading<i64> {
    let mut count = 0;
    for (at, entry) in std::fs::read_dir(dir).map_err(|error| reason(&error))?.enumerate() {
        if at >= FLAWS_MAX {
            return Err(Unknown::Error);
        }
        let path = entry.map_err(|error| reason(&error))?.path();
        let said = read_bounded(&path, FLAW_MAX).map_err(|error| reason(&error))?;
        count += i64::from(said.starts_with(b"Vulnerable"));
    }
    Ok(count)
}

/// The words of that command line that take a protection away, sorted, each once; words behind
/// ` -- ` are for the first process.
pub(super) fn weak_words(cmdline: &str) -> String {
    let words = cmdline.split_ascii_whitespace().take_while(|word| *word != "--");
    // The kernel takes `-` for `_` in names, quotes around values, and the last word of a name.
    let words: Vec<String> = words.map(|word| word.replace('"', "").replace('-', "_")).collect();
    let name = |word: &str| word.split('=').next().unwrap_or("").to_owned();
    let last = |(at, word): (usize, &String)| {
        !words.iter().skip(at + 1).any(|later| name(later) == name(word))
    };
    let standing = words.iter().enumerate().filter(|(at, word)| last((*at, word)));
    let mut weak: Vec<&str> =
        standing.filter_map(|(_, word)| WEAK.iter().find(|weak| *weak == word).copied()).collect();
    weak.sort_unstable();
    weak.join(",") // all of them together fit into a fact: tested
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::limits::FACT_TEXT_MAX;

    #[test]
    fn flaws_are_counted_and_a_place_without_them_is_unknown() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(vulnerable(dir.path()), Ok(0));
        for (name, said) in [
            ("meltdown", "Not affected\n"),
            ("mds", "Vulnerable: Clear CPU buffers attempted, no microcode\n"),
            ("spectre_v2", "Mitigation: Retpolines; STIBP: disabled\n"),
            ("srbds", "Vulnerable\n"),
        ] {
            std::fs::write(dir.path().join(name), said).unwrap();
        }
        assert_eq!(vulnerable(dir.path()), Ok(2));
        std::fs::create_dir(dir.path().join("odd")).unwrap();
        assert_eq!(vulnerable(dir.path()), Err(Unknown::Error), "one that can't be read");
        assert_eq!(vulnerable(&dir.path().join("none")), Err(Unknown::Absent));
    }

    #[test]
    fn words_that_weaken_are_told_as_the_kernel_reads_them() {
        for (line, want) in [
            ("", ""),
            ("ro quiet root=/dev/vda1 lockdown=integrity", ""),
            ("quiet mitigations=off nokaslr", "mitigations=off,nokaslr"),
            ("nokaslr nokaslr", "nokaslr"),
            ("selinux=0 selinux=1", ""),
            ("selinux=1 \"selinux=0\"", "selinux=0"),
            ("module.sig-enforce=0", "module.sig_enforce=0"),
            ("quiet -- nokaslr", ""),
            ("xnokaslr nokaslrx mitigations=offx", ""),
        ] {
            assert_eq!(weak_words(line), want, "{line}");
        }
        let all = WEAK.join(" ");
        assert!(weak_words(&all).len() <= FACT_TEXT_MAX);
        assert!(WEAK.windows(2).all(|pair| pair[0] < pair[1]));
    }
}
