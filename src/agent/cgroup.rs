//! The systemd unit of a process, or its container and Kubernetes pod, out of `/proc/PID/cgroup` alone.
//!
//! The text is the kernel's, but its path is named by whoever may make cgroups: a subtree that was
//! delegated to a user can hold names that look like other units. So a unit counts only where
//! systemd itself puts them, below slices, and only if nothing deeper looks like a unit too. In any
//! doubt there is no unit, and no unit matches nothing.

use std::path::Path;
use std::sync::OnceLock;

use crate::model::{Digest, is_pod_uid};

/// The initial cgroup namespace, the same number on every Linux (PROC_CGROUP_INIT_INO).
const HOST_CGROUPS: &str = "cgroup:[4026531835]";

/// A unit's name, in bytes (systemd's own limit).
const UNIT_MAX: usize = 255;

/// The service or scope that the cgroup-v2 line of this text names, if exactly one does.
///
/// Total: any text at all gives a name of `[A-Za-z0-9._@:-]` ending in `.service` or `.scope`, or
/// nothing.
pub fn unit_of(text: &str) -> Option<String> {
    let mut unified = text.lines().filter_map(|line| line.strip_prefix("0::"));
    let path = unified.next()?;
    if unified.next().is_some() || path.ends_with(" (deleted)") {
        return None;
    }
    let segments = path.strip_prefix('/')?;
    let mut units = segments.split('/').enumerate().filter(|(_, segment)| is_unit(segment));
    let (depth, unit) = units.next()?;
    if units.next().is_some() || !segments.split('/').take(depth).all(is_slice) {
        return None;
    }
    let unit = unit.strip_prefix('_').unwrap_or(unit); // systemd's escape of reserved names
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'@' | b':');
    (unit.len() <= UNIT_MAX && unit.bytes().all(plain)).then(|| unit.to_owned())
}

fn is_unit(segment: &str) -> bool {
    [".service", ".scope"].iter().any(|end| segment.ends_with(end) && segment.len() > end.len())
}

fn is_slice(segment: &str) -> bool {
    segment.ends_with(".slice")
}

/// Lines of one text: version 1 has some fifteen hierarchies.
const LINES_MAX: usize = 64;
/// What runtimes put before a container's id, where systemd keeps the tree.
const RUNTIMES: [&str; 3] = ["cri-containerd-", "crio-", "docker-"];
/// What comes between all pods and one of them, but for those of guaranteed quality.
const QUALITIES: [&str; 2] = ["burstable", "besteffort"];

/// The container of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// Its id at the runtime: 32 bytes.
    pub id: Digest,
    /// The uid of the Kubernetes pod that it belongs to; `None` where a runtime stands alone.
    pub pod_uid: Option<String>,
}

/// What one line says.
enum Place {
    Container(Container),
    Elsewhere,
    /// Nearly a container's: nobody can say what it is.
    Odd,
}

/// The container that this text names, if it does so without any doubt: both drivers of the kubelet
/// under its usual root, and Docker's and Podman's own trees. In version 1 all hierarchies must
/// agree, but for those that keep the process at their root, and the empty one of version 2.
///
/// Total: any text at all gives a container or nothing.
pub fn container_of(text: &str) -> Option<Container> {
    let lines: Vec<&str> = text.lines().take(LINES_MAX.saturating_add(1)).collect();
    if lines.len() > LINES_MAX {
        return None;
    }
    let mut found: Option<Container> = None;
    for line in &lines {
        let (number, rest) = line.split_once(':')?;
        let (_, path) = rest.split_once(':')?;
        let is_spare = path == "/" || (number == "0" && lines.len() > 1);
        match place(path) {
            Place::Container(one) if found.as_ref().is_none_or(|other| *other == one) => {
                found = Some(one);
            }
            Place::Elsewhere if is_spare => {}
            _ => return None,
        }
    }
    found
}

fn place(path: &str) -> Place {
    let Some(inner) = path.strip_prefix('/').filter(|inner| !inner.is_empty()) else {
        return Place::Elsewhere;
    };
    let segments: Vec<&str> = inner.split('/').collect();
    let is_plain = |segment: &&str| !matches!(*segment, "" | "." | "..");
    if path.ends_with(" (deleted)") || !segments.iter().all(is_plain) {
        return Place::Odd;
    }
    let found = match segments.as_slice() {
        ["kubepods.slice", rest @ ..] => in_slices(rest),
        ["kubepods", rest @ ..] => in_directories(rest),
        ["system.slice", scope, rest @ ..] if scope.starts_with("docker-") => {
            alone(scoped(scope, &["docker-"]), rest)
        }
        ["docker", id, rest @ ..] => alone(Digest::parse(id).ok(), rest),
        ["machine.slice", scope, rest @ ..] if scope.starts_with("libpod-") => {
            alone(scoped(scope, &["libpod-"]), rest)
        }
        _ => return Place::Elsewhere,
    };
    // What a container makes below its own place is its business, unless it looks like another one.
    match found {
        Some((container, below)) if !below.iter().any(|segment| is_alike(segment)) => {
            Place::Container(container)
        }
        _ => Place::Odd,
    }
}

type Found<'a> = Option<(Container, &'a [&'a str])>;

fn alone<'a>(id: Option<Digest>, below: &'a [&'a str]) -> Found<'a> {
    Some((Container { id: id?, pod_uid: None }, below))
}

/// `[kubepods-<quality>.slice/]kubepods[-<quality>]-pod<uid>.slice/<runtime>-<id>.scope`
fn in_slices<'a>(segments: &'a [&'a str]) -> Found<'a> {
    let (first, rest) = segments.split_first()?;
    let quality = QUALITIES.iter().find(|q| *first == format!("kubepods-{q}.slice"));
    let ((pod, rest), start) = match quality {
        Some(quality) => (rest.split_first()?, format!("kubepods-{quality}-pod")),
        None => ((first, rest), "kubepods-pod".to_owned()),
    };
    let uid = pod.strip_prefix(start.as_str())?.strip_suffix(".slice")?;
    // A hyphen separates slices, so systemd's names have it as `_`, and that only.
    let uid = if uid.contains('-') { return None } else { uid.replace('_', "-") };
    let (scope, below) = rest.split_first()?;
    let id = scoped(scope, &RUNTIMES)?;
    is_pod_uid(&uid).then_some((Container { id, pod_uid: Some(uid) }, below))
}

/// `[<quality>/]pod<uid>/[crio-]<id>`
fn in_directories<'a>(segments: &'a [&'a str]) -> Found<'a> {
    let (first, rest) = segments.split_first()?;
    let (pod, rest) = match QUALITIES.contains(first) {
        true => rest.split_first()?,
        false => (first, rest),
    };
    let uid = pod.strip_prefix("pod").filter(|uid| is_pod_uid(uid))?.to_owned();
    let (id, below) = rest.split_first()?;
    let id = Digest::parse(id.strip_prefix("crio-").unwrap_or(id)).ok()?;
    Some((Container { id, pod_uid: Some(uid) }, below))
}

/// The id in a scope's name.
fn scoped(scope: &str, runtimes: &[&str]) -> Option<Digest> {
    let name = scope.strip_suffix(".scope")?;
    let id = runtimes.iter().find_map(|runtime| name.strip_prefix(runtime))?;
    Digest::parse(id).ok()
}

/// Whether a name below a container's place looks like that of a pod or of a container.
fn is_alike(segment: &str) -> bool {
    let name = segment.strip_suffix(".scope").unwrap_or(segment);
    let end: Option<&str> = name.len().checked_sub(64).and_then(|from| name.get(from..));
    segment.starts_with("kubepods") || segment.starts_with("pod") || is_hex(end)
}

fn is_hex(text: Option<&str>) -> bool {
    text.is_some_and(|text| text.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// Cgroup paths mean something only where the agent sees the host's own tree.
pub(super) fn sees_host_cgroups() -> bool {
    static HOST: OnceLock<bool> = OnceLock::new();
    *HOST.get_or_init(|| {
        std::fs::read_link("/proc/self/ns/cgroup").is_ok_and(|ns| ns == Path::new(HOST_CGROUPS))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_unit_counts_where_systemd_puts_it() {
        for (text, want) in [
            ("0::/system.slice/api.service\n", "api.service"),
            ("0::/api.service\n", "api.service"),
            (
                "12:cpu:/x\n0::/system.slice/system-pg.slice/pg@16-main.service\n",
                "pg@16-main.service",
            ),
            ("0::/system.slice/api.service/workers\n", "api.service"),
            ("0::/user.slice/user-1000.slice/session-3.scope\n", "session-3.scope"),
            ("0::/init.scope\n", "init.scope"),
            ("0::/system.slice/_cgroup.service\n", "cgroup.service"),
        ] {
            assert_eq!(unit_of(text).as_deref(), Some(want), "{text}");
        }
    }

    #[test]
    fn look_alikes_and_doubt_give_nothing() {
        for text in [
            "",
            "0::/\n",
            "0::\n",
            "1:name=systemd:/system.slice/api.service\n",
            "0::/system.slice/api.service\n0::/system.slice/b.service\n",
            "0::/user.slice/user-1000.slice/user@1000.service/app.slice/api.service\n",
            "0::/delegated/system.slice/api.service\n",
            "0::/../system.slice/api.service\n",
            "0::/system.slice/api.service (deleted)\n",
            "0::/system.slice/.service\n",
            "0::/system.slice/a b.service\n",
            "0::/system.slice/dev\\x2dsda.service\n",
            "0::/system.slice\n",
        ] {
            assert_eq!(unit_of(text), None, "{text}");
        }
        assert_eq!(unit_of(&format!("0::/{}.service", "a".repeat(300))), None);
    }

    const UID: &str = "0a1b2c3d-1111-2222-3333-444455556666";

    fn id() -> String {
        "ab".repeat(32)
    }

    fn container(pod: Option<&str>) -> Option<Container> {
        let id = Digest::parse(&id()).unwrap();
        Some(Container { id, pod_uid: pod.map(str::to_owned) })
    }

    #[test]
    fn a_container_is_known_in_every_form_that_runtimes_write() {
        let (id, flat) = (id(), UID.replace('-', "_"));
        let plain = "0123456789abcdef0123456789abcdef"; // a pod out of the kubelet's own directory
        for (path, pod) in [
            (
                format!(
                    "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{flat}.slice/cri-containerd-{id}.scope"
                ),
                UID,
            ),
            (
                format!(
                    "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{flat}.slice/crio-{id}.scope"
                ),
                UID,
            ),
            (format!("/kubepods.slice/kubepods-pod{flat}.slice/docker-{id}.scope"), UID),
            (format!("/kubepods.slice/kubepods-pod{plain}.slice/docker-{id}.scope"), plain),
            (
                format!(
                    "/kubepods.slice/kubepods-pod{flat}.slice/cri-containerd-{id}.scope/init.scope"
                ),
                UID,
            ),
            (format!("/kubepods/burstable/pod{UID}/{id}"), UID),
            (format!("/kubepods/besteffort/pod{UID}/crio-{id}"), UID),
            (format!("/kubepods/pod{UID}/{id}"), UID),
            (format!("/kubepods/pod{plain}/{id}/workers"), plain),
            (format!("/system.slice/docker-{id}.scope"), ""),
            (format!("/docker/{id}"), ""),
            (format!("/machine.slice/libpod-{id}.scope/container"), ""),
        ] {
            let want = container(Some(pod).filter(|pod| !pod.is_empty()));
            assert_eq!(container_of(&format!("0::{path}\n")), want, "{path}");
            let one = format!("12:cpu,cpuacct:{path}\n3:misc:/\n1:name=systemd:{path}\n");
            assert_eq!(container_of(&one), want, "{path}");
            let spare = format!("{one}0::/system.slice/containerd.service\n");
            assert_eq!(container_of(&spare), want, "{path}");
            let doubt = format!("{one}2:memory:/user.slice\n");
            assert_eq!(container_of(&doubt), None, "{path}");
            let other = format!("{one}2:memory:/docker/{}\n", "cd".repeat(32));
            assert_eq!(container_of(&other), None, "{path}");
        }
    }

    #[test]
    fn what_only_looks_like_a_container_is_none() {
        let (id, flat) = (id(), UID.replace('-', "_"));
        let slice = format!("/kubepods.slice/kubepods-pod{flat}.slice");
        for path in [
            "/".to_owned(),
            "/system.slice/api.service".to_owned(),
            slice.clone(),
            format!("{slice}/crio-conmon-{id}.scope"),
            format!("{slice}/cri-containerd-{}.scope", &id[2..]),
            format!("{slice}/cri-containerd-{}.scope", id.to_uppercase()),
            format!("{slice}/cri-containerd-{id}.scope (deleted)"),
            format!("{slice}/cri-containerd-{id}.scope/../x"),
            format!("{slice}/cri-containerd-{id}.scope//x"),
            format!("{slice}/cri-containerd-{id}.scope/cri-containerd-{id}.scope"),
            format!("{slice}/cri-containerd-{id}.scope/kubepods/pod{UID}/{id}"),
            format!("{slice}/{id}"),
            format!("{slice}:cri-containerd:{id}"),
            format!("/kubepods.slice/kubepods-pod{UID}.slice/crio-{id}.scope"),
            format!("/kubepods.slice/kubepods-pod{}.slice/crio-{id}.scope", &flat[1..]),
            format!(
                "/kubepods.slice/kubepods-burstable.slice/kubepods-besteffort-pod{flat}.slice/crio-{id}.scope"
            ),
            format!("/kubepods/pod{flat}/{id}"),
            format!("/kubepods/guaranteed/pod{UID}/{id}"),
            format!("/kubepods/pod{UID}"),
            format!("/user.slice/user-1000.slice/user@1000.service/kubepods/pod{UID}/{id}"),
            format!("/user.slice/kubepods.slice/kubepods-pod{flat}.slice/crio-{id}.scope"),
            format!("/system.slice/docker-{id}.scope/kubepods/pod{UID}/{id}"),
            format!("/user.slice/docker-{id}.scope"),
        ] {
            assert_eq!(container_of(&format!("0::{path}\n")), None, "{path}");
        }
        for text in ["", "\n", "0\n", "0:\n", "no text of the kernel's"] {
            assert_eq!(container_of(text), None, "{text:?}");
        }
        let many = format!("1:x:/docker/{id}\n").repeat(LINES_MAX + 1);
        assert_eq!(container_of(&many), None);
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in "(0::|1:cpu:)?(/kubepods(.slice)?/pod)?[/a-z.]{0,40}(\\.service|\n|/){0,6}.{0,40}") {
            if let Some(unit) = unit_of(&text) {
                prop_assert!(unit.len() <= UNIT_MAX && !unit.contains(['/', '\n', ' ']));
            }
            if let Some(Container { pod_uid: Some(uid), .. }) = container_of(&text) {
                prop_assert!(is_pod_uid(&uid));
            }
        }
    }
}
