//! A sink whose disk fails: one operation goes wrong, or the power goes.
//!
//! It is honest: what was not synced is kept apart and lost, or half lost, when the power goes, as
//! a real disk may do; everything that succeeds lies in the real directory.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::sink::{Files, Put, Segment, Sink};

/// What happens at the chosen operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// It fails with this errno and has no effect; later ones work.
    Error(i32),
    /// The power goes before it; what was not synced is there by luck.
    CutBefore,
    /// The power goes after it.
    CutAfter,
    /// The power goes in it: of what was not synced every second block stays, new names are lost.
    CutTorn,
}

#[derive(Debug)]
pub(super) struct Faults {
    /// Operations until the fault; below zero: never.
    left: AtomicI64,
    fault: Mutex<Fault>,
    dead: AtomicBool,
    free: AtomicU64,
    /// Files whose names are not durable, with their content before.
    unsynced: Mutex<Vec<(PathBuf, Option<Vec<u8>>)>>,
    pub(super) done: AtomicU64,
}

impl Faults {
    pub(super) fn at(operation: i64, fault: Fault) -> Arc<Self> {
        Arc::new(Self {
            left: AtomicI64::new(operation),
            fault: Mutex::new(fault),
            dead: AtomicBool::new(false),
            free: AtomicU64::new(u64::MAX),
            unsynced: Mutex::default(),
            done: AtomicU64::new(0),
        })
    }

    /// The very next operation goes wrong.
    pub(super) fn now(&self, fault: Fault) {
        *self.fault.lock().unwrap() = fault;
        self.left.store(0, Ordering::SeqCst);
    }

    pub(super) fn set_free(&self, bytes: u64) {
        self.free.store(bytes, Ordering::SeqCst);
    }

    pub(super) fn is_dead(&self) -> bool {
        self.dead.load(Ordering::SeqCst)
    }

    /// Does one operation, unless it is the one that goes wrong.
    fn run<T>(&self, act: impl FnOnce() -> io::Result<T>, torn: impl FnOnce()) -> io::Result<T> {
        if self.is_dead() {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        self.done.fetch_add(1, Ordering::SeqCst);
        if self.left.fetch_sub(1, Ordering::SeqCst) != 0 {
            return act();
        }
        let fault = *self.fault.lock().unwrap();
        let errno = match fault {
            Fault::Error(errno) => return Err(io::Error::from_raw_os_error(errno)),
            Fault::CutBefore => libc::EIO,
            Fault::CutAfter => {
                let _ = act();
                libc::EIO
            }
            Fault::CutTorn => {
                torn();
                for (path, before) in self.unsynced.lock().unwrap().drain(..).rev() {
                    match before {
                        Some(bytes) => std::fs::write(path, bytes).unwrap(),
                        None => drop(std::fs::remove_file(path)),
                    }
                }
                libc::EIO
            }
        };
        self.dead.store(true, Ordering::SeqCst);
        Err(io::Error::from_raw_os_error(errno))
    }
}

pub(super) struct Faulty {
    pub(super) root: PathBuf,
    pub(super) files: Files,
    pub(super) faults: Arc<Faults>,
}

impl Faulty {
    fn remember(&self, path: &str) {
        let path = self.root.join(path);
        let before = std::fs::read(&path).ok();
        self.faults.unsynced.lock().unwrap().push((path, before));
    }

    fn wrap(&self, inner: Box<dyn Segment>) -> Box<dyn Segment> {
        Box::new(FaultySegment { inner, faults: Arc::clone(&self.faults), pending: Vec::new() })
    }
}

impl Sink for Faulty {
    fn create(&self, path: &str, bytes: u64, header: &[u8]) -> io::Result<Box<dyn Segment>> {
        let create = || {
            let made = self.files.create(path, bytes, header);
            self.faults.unsynced.lock().unwrap().clear();
            made
        };
        let torn = || {
            std::fs::create_dir_all(self.root.join("tmp")).unwrap();
            std::fs::write(self.root.join("tmp/segment"), &header[..header.len() / 2]).unwrap();
        };
        self.faults.run(create, torn).map(|segment| self.wrap(segment))
    }

    fn open(&self, path: &str) -> io::Result<Box<dyn Segment>> {
        self.files.open(path).map(|segment| self.wrap(segment))
    }

    fn put(&self, path: &str, bytes: &[u8], put: Put) -> io::Result<()> {
        let act = || {
            self.remember(path);
            self.files.put(path, bytes, put)
        };
        let torn = || {
            std::fs::create_dir_all(self.root.join("tmp")).unwrap();
            std::fs::write(self.root.join("tmp/file"), &bytes[..bytes.len() / 2]).unwrap();
        };
        self.faults.run(act, torn)
    }

    fn sync_names(&self) -> io::Result<()> {
        let act = || {
            self.files.sync_names()?;
            self.faults.unsynced.lock().unwrap().clear();
            Ok(())
        };
        self.faults.run(act, || {})
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        let act = || {
            if self.root.join(path).is_file() {
                self.remember(path);
            }
            self.files.remove(path)
        };
        self.faults.run(act, || {})
    }

    fn free(&self) -> io::Result<u64> {
        match self.faults.free.load(Ordering::SeqCst) {
            u64::MAX => self.files.free(),
            free => Ok(free),
        }
    }
}

struct FaultySegment {
    inner: Box<dyn Segment>,
    faults: Arc<Faults>,
    /// Written, not synced.
    pending: Vec<(Vec<u8>, u64)>,
}

impl FaultySegment {
    fn half(pending: &[(Vec<u8>, u64)], inner: &mut dyn Segment) {
        for (bytes, at) in pending {
            for (block, place) in bytes.chunks(512).zip((*at..).step_by(512)).step_by(2) {
                inner.write_at(block, place).unwrap();
            }
        }
    }
}

impl Segment for FaultySegment {
    fn write_at(&mut self, bytes: &[u8], at: u64) -> io::Result<()> {
        let faults = Arc::clone(&self.faults);
        let write = (bytes.to_vec(), at);
        let mut torn = self.pending.clone();
        torn.push(write.clone());
        let inner = &mut *self.inner;
        faults.run(|| Ok(()), || Self::half(&torn, inner))?;
        self.pending.push(write);
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        let faults = Arc::clone(&self.faults);
        let pending = std::mem::take(&mut self.pending);
        let inner = std::cell::RefCell::new(&mut *self.inner);
        let act = || {
            let mut inner = inner.borrow_mut();
            for (bytes, at) in &pending {
                inner.write_at(bytes, *at)?;
            }
            inner.sync()
        };
        faults.run(act, || Self::half(&pending, &mut **inner.borrow_mut()))
    }

    fn links(&self) -> io::Result<u64> {
        self.inner.links()
    }
}
