//! What the kernel shows others of a process of ours: no core, no memory, no environment. Held for
//! real processes, as the user that they run as; of root nothing can be hidden.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use doorward::app::Stage;

use super::journey::program;
use super::scene::{missing, outside, until};

const SOON: Duration = Duration::from_secs(20);

/// A place and a user whose processes are looked at. Root could read anything, and files of its
/// processes are root's either way: as root, everything runs as somebody else.
struct Somebody {
    root: tempfile::TempDir,
    uid: u32,
}

impl Somebody {
    fn new() -> Option<Self> {
        let root = tempfile::tempdir().unwrap();
        let own = nix::unistd::geteuid();
        if !own.is_root() {
            return Some(Self { root, uid: own.as_raw() });
        }
        let _ = outside("setpriv", "util-linux")?;
        let uid = 65_534;
        std::fs::set_permissions(root.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
        std::fs::create_dir(root.path().join("stage")).unwrap();
        nix::unistd::chown(&root.path().join("stage"), Some(uid.into()), Some(uid.into())).unwrap();
        Some(Self { root, uid })
    }

    /// A file that runs `program` as this user, under the same process id, and with cores allowed as
    /// far as the system allows them.
    fn script(&self, name: &str, program: &Path) -> PathBuf {
        let own = program.display();
        let become_somebody = match nix::unistd::geteuid().is_root() {
            true => format!("setpriv --reuid={0} --regid={0} --clear-groups ", self.uid),
            false => String::new(),
        };
        let text = format!(
            "#!/bin/sh\nulimit -S -c unlimited 2>/dev/null\nexec {become_somebody}{own} \"$@\"\n"
        );
        let path = self.root.path().join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    /// A copy of the program under test that this user may run.
    fn copy(&self, name: &str) -> PathBuf {
        let path = self.root.path().join(name);
        std::fs::copy(program(), &path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }
}

/// Ended whatever happens.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What can be seen of a process.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    /// Who runs it.
    uid: u32,
    /// Soft and hard limit of its cores.
    core: (String, String),
    /// Its own user owns its files in `/proc`: it is dumpable (proc(5)).
    owned: bool,
    /// What else this user runs may read its environment and memory map.
    readable: bool,
}

fn seen(cat: &Path, pid: u32) -> Seen {
    let file = |name: &str| PathBuf::from(format!("/proc/{pid}/{name}"));
    let text = |name: &str| std::fs::read_to_string(file(name)).unwrap_or_default();
    let status = text("status");
    let ids = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap_or_default();
    let uid = ids.split_whitespace().nth(1).map_or(u32::MAX, |uid| uid.parse().unwrap());
    let limits = text("limits");
    let core = limits.lines().find_map(|line| line.strip_prefix("Max core file size"));
    let mut core = core.unwrap_or_default().split_whitespace().map(str::to_owned);
    let core = (core.next().unwrap_or_default(), core.next().unwrap_or_default());
    let owners =
        ["environ", "mem", "maps"].map(|name| std::fs::metadata(file(name)).unwrap().uid());
    let owned = owners.contains(&uid);
    let reads = |name: &str| {
        let read = Command::new(cat).arg(file(name)).stderr(Stdio::null()).output().unwrap();
        read.status.success() && !read.stdout.is_empty()
    };
    Seen { uid, core, owned, readable: reads("environ") || reads("maps") }
}

#[test]
fn no_process_of_ours_leaves_a_core_or_shows_its_memory() {
    let Some(somebody) = Somebody::new() else { return };
    let sleep = outside("sleep", "coreutils").unwrap();
    let cat = somebody.script("cat", &outside("cat", "coreutils").unwrap());
    // The control: a process that does nothing about it is seen by its own user.
    let mut naked = Command::new(somebody.script("sleep", &sleep));
    let naked = Running(naked.arg("600").spawn().unwrap());
    let see = |pid: u32| seen(&cat, pid);
    let naked = until(SOON, || see(naked.0.id()), |seen| seen.uid == somebody.uid && seen.owned);
    assert!(naked.readable, "{naked:?}");
    if naked.core.1 == "0" {
        return missing("a hard limit of cores above 0");
    }
    assert_ne!(naked.core.0, "0", "the control");

    let exe = somebody.script("doorward", &somebody.copy("doorward-program"));
    let dir = somebody.root.path().join("stage");
    let mut stage = Stage::with_program(exe.clone(), Some(dir)).unwrap();
    stage.start_agent().unwrap();
    let hidden = Seen {
        uid: somebody.uid,
        core: ("0".to_owned(), "0".to_owned()),
        owned: false,
        readable: false,
    };
    for name in ["broker", "agent"] {
        assert_eq!(see(stage.pid(name).unwrap()), hidden, "{name}");
    }
    // A command that holds a secret, or waits for one on its standard input.
    let mut put = Command::new(&exe);
    put.args(["--identity", &stage.operator_dir().display().to_string(), "put", "shop/x"]);
    let put = Running(put.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap());
    until(SOON, || see(put.0.id()), |seen| *seen == hidden);
    drop(put);

    // A command that asks the agent must be seen by it, so it is visible to its own user; a core it
    // leaves no more than the others, and neither does what it runs.
    let api = somebody.copy("api");
    #[rustfmt::skip]
    let args = [
        "entry", "create", "--id", "api", "--selector", &format!("uid:{}", somebody.uid),
        "--selector", &format!("path:{}", api.display()),
    ];
    stage.operator_must(&args, None).unwrap();
    let socket = stage.socket().display().to_string();
    let mut whoami = Command::new(somebody.script("as-api", &api));
    whoami.args(["--socket", &socket, "whoami"]).stdout(Stdio::null()).stderr(Stdio::null());
    until(SOON, || whoami.status().unwrap().success(), |known| *known);
    stage.operator_must(&["put", "shop/x"], Some(b"value")).unwrap();
    super::scene::add_rows(
        &stage,
        "\n#@ owner=shop\np, api-reads, spiffe://dev.doorward/api, secret/shop/x, read, any, -, -, allow\n",
    );
    let mut run = Command::new(somebody.script("run-api", &api));
    run.args(["--socket", &socket, "run", "--env", "X=secret/shop/x", "--"]).arg(&sleep).arg("600");
    let run = Running(run.stdin(Stdio::null()).spawn().unwrap());
    let core = |pid: u32| see(pid).core;
    let none = hidden.core;
    until(SOON, || core(run.0.id()), |core| *core == none);
    let command = || std::fs::read_to_string(format!("/proc/{}/cmdline", run.0.id())).unwrap();
    until(SOON, command, |line| !line.contains("--socket"));
    assert_eq!(core(run.0.id()), none, "what it became");
}
