//! What several tests of the whole stand on: programs of others, a workload that may read, and a
//! look at everything that must not hold a secret.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use doorward::app::Stage;

/// A program of others on the path. Where it is missing, the test is skipped with a word; in
/// continuous integration that is a failure.
pub fn outside(program: &str, package: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/bin", "/bin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    let found =
        usual.into_iter().chain(std::env::split_paths(&path)).map(|dir| dir.join(program)).find(
            |path| {
                std::fs::metadata(path)
                    .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
            },
        );
    if found.is_none() {
        missing(&format!("{program} (Debian package {package})"));
    }
    found
}

/// Something from outside is not there.
pub fn missing(what: &str) {
    assert!(!std::env::var("CI").is_ok_and(|ci| ci == "true"), "this test needs {what}");
    eprintln!("SKIPPED: needs {what}");
}

/// Adds rows to the policy and puts it in force.
pub fn add_rows(stage: &Stage, rows: &str) {
    let dir = stage.broker_dir().join("policies");
    let file = dir.join("policy.csv");
    let mut text = std::fs::read_to_string(&file).unwrap();
    text.push_str(rows);
    std::fs::write(&file, text).unwrap();
    stage.operator_must(&["policy", "activate", &dir.display().to_string()], None).unwrap();
}

/// Registers whatever runs from `program` under this user as the workload `name`.
pub fn register(stage: &Stage, name: &str, program: &Path) {
    let uid = format!("uid:{}", nix::unistd::getuid());
    let path = format!("path:{}", program.display());
    let args = ["entry", "create", "--id", name, "--selector", &uid, "--selector", &path];
    stage.operator_must(&args, None).unwrap();
}

/// Looks again until it is so; the last look is told when the time is over.
pub fn until<T: std::fmt::Debug>(
    most: Duration,
    mut look: impl FnMut() -> T,
    enough: impl Fn(&T) -> bool,
) -> T {
    let began = Instant::now();
    loop {
        let seen = look();
        if enough(&seen) {
            return seen;
        }
        assert!(began.elapsed() < most, "after {most:?}: {seen:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A value that stands nowhere else.
pub fn random_text() -> String {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).unwrap();
    format!("canary{}", hex::encode(bytes))
}

/// Where any of these texts stands, as it is, in hexadecimal or in base64: files below `dir`, and
/// the command lines and environments of the processes `pids` as well as the command lines of all.
pub fn traces(dir: &Path, pids: &[u32], secrets: &[&str]) -> Vec<String> {
    let needles: Vec<Vec<u8>> = secrets.iter().flat_map(|secret| forms(secret)).collect();
    let holds = |bytes: &[u8]| {
        needles.iter().any(|needle| bytes.windows(needle.len()).any(|window| window == needle))
    };
    let mut found = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir).unwrap().flatten() {
            let (path, meta) = (entry.path(), entry.metadata());
            let Ok(meta) = meta else { continue };
            if meta.is_dir() {
                // Copies of the program under test are large and hold no state.
                if path.file_name().is_none_or(|name| name != "bin") {
                    dirs.push(path);
                }
            } else if meta.is_file() && std::fs::read(&path).is_ok_and(|bytes| holds(&bytes)) {
                found.push(path.display().to_string());
            }
        }
    }
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Ok(pid) = name.parse::<u32>() else { continue };
        let files: &[&str] =
            if pids.contains(&pid) { &["cmdline", "environ"] } else { &["cmdline"] };
        for file in files {
            let path = entry.path().join(file);
            if std::fs::read(&path).is_ok_and(|bytes| holds(&bytes)) {
                found.push(path.display().to_string());
            }
        }
    }
    found
}

/// A text as it is, in hexadecimal, and in base64 at each of the three places in a group.
fn forms(secret: &str) -> Vec<Vec<u8>> {
    use base64::Engine as _;
    let mut forms = vec![secret.as_bytes().to_vec(), hex::encode(secret).into_bytes()];
    for before in 0..3 {
        let mut bytes = vec![0; before];
        bytes.extend_from_slice(secret.as_bytes());
        let text = base64::engine::general_purpose::STANDARD_NO_PAD.encode(&bytes);
        // The first and the last group mix with what stands beside.
        let whole = if before == 0 { 0 } else { 4 };
        forms.push(text.as_bytes()[whole..text.len() - 4].to_vec());
    }
    forms
}

#[test]
fn traces_are_found_in_every_form() {
    use base64::Engine as _;
    let dir = tempfile::tempdir().unwrap();
    let secret = random_text();
    assert!(traces(dir.path(), &[], &[&secret]).is_empty());
    let base64 = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    for (at, text) in [
        format!("a{secret}b"),
        hex::encode(&secret),
        base64(&secret),
        base64(&format!("x{secret}y")),
        base64(&format!("xx{secret}yy")),
    ]
    .iter()
    .enumerate()
    {
        let below = dir.path().join(format!("d{at}"));
        std::fs::create_dir(&below).unwrap();
        std::fs::write(below.join("f"), text).unwrap();
        assert_eq!(traces(&below, &[], &[&secret]).len(), 1, "{text}");
    }
}
