//! A TPM in software for tests: started in a directory of its own, stopped at the end.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Whether the programs are there; says so, or in CI fails.
pub fn is_here() -> bool {
    let here = ["swtpm", "swtpm_setup"].iter().all(|program| {
        Command::new(program)
            .arg("--version")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok()
    });
    let ci = std::env::var("CI").is_ok_and(|ci| ci == "true");
    assert!(here || !ci, "swtpm and swtpm_setup are needed (Debian packages swtpm, swtpm-tools)");
    if !here {
        eprintln!("SKIPPED: needs swtpm");
    }
    here
}

/// One running TPM.
pub struct Swtpm {
    dir: PathBuf,
    child: Option<Child>,
    /// Where it is, as `--tpm` takes it.
    pub place: String,
}

impl Swtpm {
    /// A fresh TPM without certificates.
    pub fn fresh(above: &Path, name: &str) -> Self {
        let dir = above.join(name);
        std::fs::create_dir(&dir).unwrap();
        let place = format!("unix:{}", dir.join("sock").display());
        let mut it = Self { dir, child: None, place };
        it.start();
        it
    }

    /// One with endorsement keys that a maker has certified; its roots are in [`Swtpm::issuers`].
    pub fn made(above: &Path, name: &str) -> Self {
        let dir = above.join(name);
        std::fs::create_dir_all(dir.join("ca")).unwrap();
        let at = |file: &str| dir.join(file).display().to_string();
        let write = |file: &str, text: String| std::fs::write(dir.join(file), text).unwrap();
        let (ca, options) = (at("ca.conf"), at("ca.options"));
        write(
            "setup.conf",
            format!(
                "create_certs_tool=/usr/bin/swtpm_localca\ncreate_certs_tool_config={ca}\n\
                 create_certs_tool_options={options}\n"
            ),
        );
        let below = |file: &str| at(&format!("ca/{file}"));
        let (key, issuer, serial) = (below("key.pem"), below("issuer.pem"), below("serial"));
        write(
            "ca.conf",
            format!(
                "statedir={}\nsigningkey={key}\nissuercert={issuer}\ncertserial={serial}\n",
                at("ca")
            ),
        );
        write("ca.options", "--platform-manufacturer test --platform-model test\n".into());
        let made = Command::new("swtpm_setup")
            .args(["--tpm2", "--create-ek-cert", "--pcr-banks", "sha256", "--ecc", "--overwrite"])
            .arg("--tpmstate")
            .arg(&dir)
            .arg("--config")
            .arg(dir.join("setup.conf"))
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
        let place = format!("unix:{}", dir.join("sock").display());
        let mut it = Self { dir, child: None, place };
        it.start();
        it
    }

    /// The PEM file of the certificate that signed those of the endorsement keys.
    pub fn issuers(&self) -> PathBuf {
        self.dir.join("ca/issuer.pem")
    }

    /// Its Unix socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("sock")
    }

    pub fn start(&mut self) {
        let control = format!("type=unixio,path={}", self.dir.join("ctrl").display());
        let server = format!("type=unixio,path={}", self.socket().display());
        self.run(&server, &control);
        let socket = self.socket().display().to_string();
        until("swtpm listens", || {
            // The kernel's list says whether somebody accepts there, without connecting.
            let table = std::fs::read_to_string("/proc/net/unix").unwrap_or_default();
            table.lines().any(|line| line.contains(" 00010000 ") && line.ends_with(&socket))
        });
    }

    /// The same TPM at a port of this machine.
    pub fn start_tcp(&mut self) {
        self.stop();
        for _ in 0..20 {
            let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let port = free.local_addr().unwrap().port();
            drop(free);
            let server = format!("type=tcp,port={port},bindaddr=127.0.0.1");
            let control = format!("type=unixio,path={}", self.dir.join("ctrl").display());
            self.run(&server, &control);
            let place = format!("tcp:127.0.0.1:{port}");
            let deadline = Instant::now() + Duration::from_secs(10);
            while Instant::now() < deadline {
                let child = self.child.as_mut().unwrap();
                if child.try_wait().unwrap().is_some() {
                    break; // somebody else took the port
                }
                if listens(port) {
                    self.place = place;
                    return;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            self.stop();
        }
        panic!("swtpm found no port");
    }

    fn run(&mut self, server: &str, control: &str) {
        let child = Command::new("swtpm")
            .args(["socket", "--tpm2", "--flags", "not-need-init,startup-clear"])
            .arg("--tpmstate")
            .arg(format!("dir={}", self.dir.display()))
            .args(["--server", server, "--ctrl", control])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        self.child = Some(child);
    }

    /// Power off, without a word.
    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = std::fs::remove_file(self.socket());
        let _ = std::fs::remove_file(self.dir.join("ctrl"));
    }

    /// Off and on again.
    pub fn reboot(&mut self) {
        self.stop();
        self.start();
    }
}

impl Drop for Swtpm {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Whether a port is listened on, without connecting: this TPM takes one caller at a time.
fn listens(port: u16) -> bool {
    let wanted = format!(":{port:04X}");
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap_or_default();
    table.lines().any(|line| {
        let mut words = line.split_whitespace().skip(1);
        let local = words.next().is_some_and(|local| local.ends_with(&wanted));
        local && words.nth(1) == Some("0A")
    })
}

/// Polls, for up to half a minute.
pub fn until(what: &str, mut is: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is() {
        assert!(Instant::now() < deadline, "{what}: not in time");
        std::thread::sleep(Duration::from_millis(10));
    }
}
