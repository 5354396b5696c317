//! `[federation]` of `broker.toml`: our own bundle endpoint, and the roots of the web by which those of
//! others are judged.

use std::net::SocketAddr;
use std::path::PathBuf;

/// How our own endpoint proves itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EndpointProof {
    /// Profile `https_spiffe`: with the broker's own SVID.
    Svid,
    /// Profile `https_web`: with a certificate of the web and its key, both PEM files.
    Web {
        /// Leaf first.
        certificate: PathBuf,
        /// 0600.
        key: PathBuf,
    },
}

/// Where our own bundle is published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointConfig {
    /// TCP address.
    pub listen: SocketAddr,
    /// The one path that is answered.
    pub path: String,
    /// What it shows.
    pub proof: EndpointProof,
}

/// The section.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FederationConfig {
    /// Our own endpoint; off unless an address is given.
    pub endpoint: Option<EndpointConfig>,
    /// The roots of the web, a PEM file.
    pub web_roots: PathBuf,
}

/// Where Debian and most others keep the roots of the web.
const WEB_ROOTS: &str = "/etc/ssl/certs/ca-certificates.crt";

impl Default for FederationConfig {
    fn default() -> Self {
        Self { endpoint: None, web_roots: WEB_ROOTS.into() }
    }
}

impl FederationConfig {
    /// The keys of the section.
    pub(super) const KEYS: &'static [&'static str] =
        &["listen", "path", "profile", "certificate", "key", "web_roots"];

    /// The section as text; nothing where all of it is as without.
    pub(super) fn render(&self) -> String {
        let mut lines = Vec::new();
        let text = |text: &str| toml::Value::String(text.to_owned()).to_string();
        if let Some(endpoint) = &self.endpoint {
            lines.push(format!("listen = \"{}\"", endpoint.listen));
            lines.push(format!("path = {}", text(&endpoint.path)));
            match &endpoint.proof {
                EndpointProof::Svid => lines.push("profile = \"https_spiffe\"".to_owned()),
                EndpointProof::Web { certificate, key } => {
                    lines.push("profile = \"https_web\"".to_owned());
                    lines.push(format!("certificate = {}", text(&certificate.to_string_lossy())));
                    lines.push(format!("key = {}", text(&key.to_string_lossy())));
                }
            }
        }
        if self.web_roots.as_os_str() != WEB_ROOTS {
            lines.push(format!("web_roots = {}", text(&self.web_roots.to_string_lossy())));
        }
        match lines.is_empty() {
            true => String::new(),
            false => format!("\n[federation]\n{}\n", lines.join("\n")),
        }
    }

    /// Out of the values of the section.
    ///
    /// # Errors
    /// The key that is at fault, and why.
    pub(super) fn of<'v>(
        value: impl Fn(&'static str) -> Option<&'v str>,
    ) -> Result<Self, (&'static str, &'static str)> {
        let path = |name| value(name).map(PathBuf::from);
        let web_roots = path("web_roots").unwrap_or_else(|| WEB_ROOTS.into());
        let Some(listen) = value("listen") else {
            let idle = ["path", "profile", "certificate", "key"];
            return match idle.into_iter().find(|name| value(name).is_some()) {
                Some(name) => Err((name, "without `listen` there is no endpoint to say this of")),
                None => Ok(Self { endpoint: None, web_roots }),
            };
        };
        let bad_address = ("listen", "`listen` is a TCP address with a port, e.g. `0.0.0.0:8445`");
        let proof = match (value("profile"), path("certificate"), path("key")) {
            (Some("https_spiffe"), None, None) => EndpointProof::Svid,
            (Some("https_spiffe"), Some(_), _) => {
                return Err(("certificate", "`certificate` goes with `profile = \"https_web\"`"));
            }
            (Some("https_spiffe"), None, Some(_)) => {
                return Err(("key", "`key` goes with `profile = \"https_web\"`"));
            }
            (Some("https_web"), Some(certificate), Some(key)) => {
                EndpointProof::Web { certificate, key }
            }
            (Some("https_web"), ..) => {
                return Err(("profile", "`https_web` needs `certificate` and `key`, PEM files"));
            }
            (Some(_), ..) => return Err(("profile", "`profile` is `https_spiffe` or `https_web`")),
            (None, ..) => {
                return Err(("listen", "`profile` is missing: `https_spiffe` or `https_web`"));
            }
        };
        let endpoint = EndpointConfig {
            listen: listen.parse().map_err(|_| bad_address)?,
            path: value("path").unwrap_or("/").to_owned(),
            proof,
        };
        let is_plain = |b: u8| matches!(b, b'!'..=b'~') && b != b'#' && b != b'?';
        let is_path = endpoint.path.starts_with('/') && endpoint.path.bytes().all(is_plain);
        if !is_path || endpoint.path.len() > 256 {
            return Err(("path", "`path` begins with `/` and holds plain characters only"));
        }
        Ok(Self { endpoint: Some(endpoint), web_roots })
    }
}
