//! `broker.toml`: read whole, every fault named at once, unknown keys refused.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::enrolment_config::EnrolmentConfig;
use super::federation_config::FederationConfig;
use super::oidc::Issuer;
use super::upstream::UpstreamConfig;
use crate::model::{Diagnostic, TrustDomain, did_you_mean, limits};

/// How the root key is opened at start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SealConfig {
    /// A 32-byte key file, 0600.
    KeyFile(PathBuf),
    /// A passphrase: a person at each start, or a systemd credential.
    Passphrase,
}

/// A broker's configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokerConfig {
    /// Whose identities it issues.
    pub trust_domain: TrustDomain,
    /// UDP address for holders of SVIDs.
    pub listen: SocketAddr,
    /// UDP address for applicants.
    pub enrolment: SocketAddr,
    /// Loopback TCP address for health and metrics.
    pub management: SocketAddr,
    /// `host:port` that join tokens carry for the broker.
    pub advertise: String,
    /// `host:port` that join tokens carry for enrolment.
    pub advertise_enrolment: String,
    /// What verifiers of JWT-SVIDs that know no SPIFFE reach the management port by.
    pub oidc_issuer: Option<Issuer>,
    /// How the root key is opened.
    pub seal: SealConfig,
    /// Requests a second of one caller.
    pub caller_rate: u32,
    /// Denials a second of one caller.
    pub denial_rate: u32,
    /// Threads that serve connections; by default one a core, at most
    /// [`limits::SERVING_THREADS`].
    pub threads: Option<usize>,
    /// Who may become a device without a join token.
    pub methods: EnrolmentConfig,
    /// Our own bundle endpoint, and how those of others are judged.
    pub federation: FederationConfig,
    /// The company's authority that ours stand below; without it they are roots.
    pub upstream: Option<UpstreamConfig>,
}

const KEYS: &[&str] = &[
    "trust_domain",
    "listen",
    "advertise",
    "seal",
    "limits",
    "enrolment",
    "federation",
    "upstream",
];

impl BrokerConfig {
    /// Reads the text of a `broker.toml`.
    ///
    /// # Errors
    /// Every fault of the file, with its place.
    pub fn parse(file: &str, text: &str) -> Result<Self, Vec<Diagnostic>> {
        let (table, errors) = DeTable::parse_recoverable(text);
        let mut reader = Reader { file, text, faults: Vec::new() };
        for error in &errors {
            let span = error.span().unwrap_or(0..1);
            reader.fault(span, error.message().to_owned(), None);
        }
        let table = table.get_ref();
        reader.only(table, KEYS);
        let trust_domain = reader.domain(table);
        let listen = reader.section(table, "listen", &["broker", "enrolment", "management"]);
        let broker = reader.address(listen, "broker", "0.0.0.0:8443");
        let enrolment = reader.address(listen, "enrolment", "0.0.0.0:8444");
        let management = reader.loopback(listen, "management", "127.0.0.1:8081");
        let known = ["broker", "enrolment", "oidc_issuer"];
        let advertise = reader.section(table, "advertise", &known);
        let oidc_issuer = reader.issuer(advertise);
        let advertised = reader.place(advertise, "broker");
        let advertised_enrolment = reader.place(advertise, "enrolment");
        let seal = reader.seal(table);
        let rates = reader.section(table, "limits", &["caller_rate", "denial_rate", "threads"]);
        let rate = 1..=1_000_000;
        let caller_rate = reader.number(rates, "caller_rate", &rate, limits::CALLER_RATE);
        let denial_rate = reader.number(rates, "denial_rate", &rate, limits::DENIAL_RATE);
        let threads = reader.threads(rates);
        let methods = reader.enrolment(table);
        let federation = reader.federation(table);
        let upstream = reader.upstream(table);
        let whole = (|| {
            Some(Self {
                trust_domain: trust_domain?,
                listen: broker?,
                enrolment: enrolment?,
                management: management?,
                advertise: advertised?,
                advertise_enrolment: advertised_enrolment?,
                oidc_issuer: oidc_issuer?,
                seal: seal?,
                caller_rate: caller_rate?,
                denial_rate: denial_rate?,
                threads: threads?,
                methods,
                federation: federation?,
                upstream: upstream?,
            })
        })();
        match whole {
            Some(config) if reader.faults.is_empty() => Ok(config),
            _ => Err(reader.faults),
        }
    }

    /// The text that `init` writes.
    pub fn render(&self) -> String {
        let seal = match &self.seal {
            SealConfig::KeyFile(path) => {
                let path = toml::Value::String(path.display().to_string());
                format!("kind = \"key-file\"\nkey_file = {path}\n")
            }
            SealConfig::Passphrase => "kind = \"passphrase\"\n".to_owned(),
        };
        let threads = self.threads.map(|threads| format!("threads = {threads}\n"));
        let threads = threads.unwrap_or_default();
        let issuer = self.oidc_issuer.as_ref();
        let issuer = issuer.map(|issuer| format!("oidc_issuer = \"{issuer}\"\n"));
        let issuer = issuer.unwrap_or_default();
        let methods = self.methods.render();
        let upstream = self.upstream.as_ref().map(UpstreamConfig::render).unwrap_or_default();
        format!(
            "# Doorward broker. `doorward config check` names every fault of this file.\n\
             trust_domain = \"{}\"\n\n\
             [listen]\n\
             # UDP: holders of identities; UDP: devices that enrol; TCP, loopback: health and metrics.\n\
             broker = \"{}\"\nenrolment = \"{}\"\nmanagement = \"{}\"\n\n\
             [advertise]\n\
             # What join tokens tell a new device; names or addresses that it can reach.\n\
             broker = \"{}\"\nenrolment = \"{}\"\n{issuer}\n\
             [seal]\n{seal}\n\
             [limits]\n\
             # A second, of one caller; more is counted and refused as `limited`.\n\
             caller_rate = {}\ndenial_rate = {}\n{threads}{}{upstream}{methods}",
            self.trust_domain,
            self.listen,
            self.enrolment,
            self.management,
            self.advertise,
            self.advertise_enrolment,
            self.caller_rate,
            self.denial_rate,
            self.federation.render(),
        )
    }
}

type Section<'a> = Option<&'a DeTable<'a>>;

/// Walks the parsed file and gathers faults.
pub(super) struct Reader<'f> {
    file: &'f str,
    text: &'f str,
    faults: Vec<Diagnostic>,
}

impl Reader<'_> {
    pub(super) fn fault(
        &mut self,
        span: std::ops::Range<usize>,
        message: String,
        help: Option<String>,
    ) {
        let mut fault = Diagnostic::at(self.file, self.text, span.start, span.len(), message);
        fault.help = help;
        self.faults.push(fault);
    }

    fn missing(&mut self, message: &str) {
        self.fault(0..1, message.to_owned(), None);
    }

    /// Names every key that is not known here.
    pub(super) fn only(&mut self, table: &DeTable<'_>, known: &[&str]) {
        for key in table.keys() {
            let name: &str = key.get_ref();
            if !known.contains(&name) {
                let help = match did_you_mean(name, known.iter().copied()) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => format!("known here: {}", known.join(", ")),
                };
                self.fault(key.span(), format!("unknown key `{name}`"), Some(help));
            }
        }
    }

    pub(super) fn section<'a>(
        &mut self,
        table: &'a DeTable<'a>,
        name: &str,
        known: &[&str],
    ) -> Section<'a> {
        let value = table.get(name)?;
        let Some(section) = value.get_ref().as_table() else {
            self.fault(value.span(), format!("`{name}` is a section: write `[{name}]`"), None);
            return None;
        };
        self.only(section, known);
        Some(section)
    }

    pub(super) fn text<'a>(
        &mut self,
        value: &'a Spanned<DeValue<'a>>,
        name: &str,
    ) -> Option<&'a str> {
        let text = value.get_ref().as_str();
        if text.is_none() {
            self.fault(value.span(), format!("`{name}` is text in quotes"), None);
        }
        text
    }

    fn domain(&mut self, table: &DeTable<'_>) -> Option<TrustDomain> {
        let Some(value) = table.get("trust_domain") else {
            self.missing("`trust_domain` is missing, e.g. `trust_domain = \"corp.example\"`");
            return None;
        };
        let text = self.text(value, "trust_domain")?;
        match TrustDomain::parse(text) {
            Ok(domain) => Some(domain),
            Err(error) => {
                self.fault(value.span(), format!("not a trust domain: {error}"), None);
                None
            }
        }
    }

    fn address(&mut self, section: Section<'_>, name: &str, default: &str) -> Option<SocketAddr> {
        let Some(value) = section.and_then(|section| section.get(name)) else {
            return default.parse().ok();
        };
        let text = self.text(value, name)?;
        let address = text.parse().ok();
        if address.is_none() {
            let help = format!("write an address with a port, e.g. `{default}`");
            self.fault(value.span(), format!("`{name}` is not an address"), Some(help));
        }
        address
    }

    fn loopback(&mut self, section: Section<'_>, name: &str, default: &str) -> Option<SocketAddr> {
        let address = self.address(section, name, default)?;
        if address.ip().is_loopback() {
            return Some(address);
        }
        let span = section.and_then(|s| s.get(name)).map_or(0..1, Spanned::span);
        let help = "metrics have no authentication; put a proxy before them to share them";
        self.fault(span, format!("`{name}` must be a loopback address"), Some(help.to_owned()));
        None
    }

    fn place(&mut self, section: Section<'_>, name: &str) -> Option<String> {
        let Some(value) = section.and_then(|section| section.get(name)) else {
            self.missing(&format!(
                "`advertise.{name}` is missing: the `host:port` that other machines reach"
            ));
            return None;
        };
        let text = self.text(value, name)?;
        let whole = text.rsplit_once(':').is_some_and(|(host, port)| {
            let plain = |b: u8| b.is_ascii_alphanumeric() || b".-:[]".contains(&b);
            !host.is_empty()
                && host.len() <= 255
                && host.bytes().all(plain)
                && port.parse::<u16>().is_ok_and(|port| port > 0)
        });
        if !whole {
            self.fault(value.span(), format!("`{name}` is not `host:port`"), None);
            return None;
        }
        Some(text.to_owned())
    }

    /// None in it: the file does not say.
    fn issuer(&mut self, section: Section<'_>) -> Option<Option<Issuer>> {
        let Some(value) = section.and_then(|section| section.get("oidc_issuer")) else {
            return Some(None);
        };
        match Issuer::parse(self.text(value, "oidc_issuer")?) {
            Ok(issuer) => Some(Some(issuer)),
            Err(why) => {
                self.fault(value.span(), format!("`oidc_issuer`: {why}"), None);
                None
            }
        }
    }

    fn seal(&mut self, table: &DeTable<'_>) -> Option<SealConfig> {
        let Some(section) = self.section(table, "seal", &["kind", "key_file"]) else {
            self.missing(
                "`[seal]` with `kind = \"key-file\"` or `kind = \"passphrase\"` is missing",
            );
            return None;
        };
        let Some(value) = section.get("kind") else {
            self.missing("`seal.kind` is missing: `key-file` or `passphrase`");
            return None;
        };
        match (self.text(value, "kind")?, section.get("key_file")) {
            ("passphrase", None) => Some(SealConfig::Passphrase),
            ("passphrase", Some(file)) => {
                self.fault(file.span(), "`key_file` goes with `kind = \"key-file\"`".into(), None);
                None
            }
            ("key-file", Some(file)) => {
                self.text(file, "key_file").map(|path| SealConfig::KeyFile(path.into()))
            }
            ("key-file", None) => {
                self.fault(value.span(), "`key_file` is missing: where the key lies".into(), None);
                None
            }
            (other, _) => {
                let help = did_you_mean(other, ["key-file", "passphrase"])
                    .map(|near| format!("did you mean `{near}`?"));
                self.fault(value.span(), "`kind` is `key-file` or `passphrase`".into(), help);
                None
            }
        }
    }

    fn federation(&mut self, table: &DeTable<'_>) -> Option<FederationConfig> {
        let Some(section) = self.section(table, "federation", FederationConfig::KEYS) else {
            return (!table.contains_key("federation")).then(FederationConfig::default);
        };
        for (name, value) in section {
            self.text(value, name.get_ref())?;
        }
        let value = |name| section.get(name).and_then(|value| value.get_ref().as_str());
        match FederationConfig::of(value) {
            Ok(config) => Some(config),
            Err((name, message)) => {
                let span = section.get(name).map_or(0..1, Spanned::span);
                self.fault(span, message.to_owned(), None);
                None
            }
        }
    }

    /// None in it: the file does not say.
    fn threads(&mut self, section: Section<'_>) -> Option<Option<usize>> {
        let most = u32::try_from(limits::SERVING_THREADS_MAX).unwrap_or(u32::MAX);
        let said = section.is_some_and(|section| section.contains_key("threads"));
        let number = self.number(section, "threads", &(1..=most), 1)?;
        Some(usize::try_from(number).ok().filter(|_| said))
    }

    pub(super) fn number(
        &mut self,
        section: Section<'_>,
        name: &str,
        range: &RangeInclusive<u32>,
        default: u32,
    ) -> Option<u32> {
        let Some(value) = section.and_then(|section| section.get(name)) else {
            return Some(default);
        };
        let number = value.get_ref().as_integer().and_then(|n| n.as_str().parse::<u32>().ok());
        match number {
            Some(number) if range.contains(&number) => Some(number),
            _ => {
                let (least, most) = (range.start(), range.end());
                let message = format!("`{name}` is a whole number, {least} to {most}");
                self.fault(value.span(), message, None);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "trust_domain = \"corp.example\"\n[advertise]\nbroker = \"b:8443\"\n\
                        enrolment = \"b:8444\"\n[seal]\nkind = \"passphrase\"\n";

    #[test]
    fn what_is_written_is_read_back() {
        let config = BrokerConfig::parse("broker.toml", GOOD).unwrap();
        assert_eq!(config.listen, "0.0.0.0:8443".parse().unwrap());
        assert_eq!(BrokerConfig::parse("broker.toml", &config.render()).unwrap(), config);
        let issuer = Issuer::parse("https://id.corp.example/a").unwrap();
        let with = BrokerConfig { oidc_issuer: Some(issuer), ..config };
        assert_eq!(BrokerConfig::parse("broker.toml", &with.render()).unwrap(), with);
        let bad = with.render().replace("https://id", "http://id");
        assert!(BrokerConfig::parse("broker.toml", &bad).is_err());
    }

    #[test]
    fn any_path_of_a_key_file_is_written_as_toml_reads_it() {
        let config = BrokerConfig::parse("broker.toml", GOOD).unwrap();
        for path in [
            "/a b/seal.key",
            "/it's",
            "/\"quoted\"",
            "/back\\slash",
            "/é/\u{200b}\u{7f}\t\n\u{1}",
            "/'''\"\"\"",
        ] {
            let with = BrokerConfig { seal: SealConfig::KeyFile(path.into()), ..config.clone() };
            let text = with.render();
            assert_eq!(BrokerConfig::parse("broker.toml", &text), Ok(with), "{text}");
        }
    }

    #[test]
    fn all_faults_are_named_at_once_with_their_place() {
        let text = "trust_domain = \"Corp\"\ntrust_domian = \"x\"\n[listen]\nbroker = \"nowhere\"\n\
                    management = \"0.0.0.0:1\"\n[seal]\nkind = \"passfrase\"\n[limits]\ncaller_rate = -1\n";
        let faults = BrokerConfig::parse("broker.toml", text).unwrap_err();
        let said: Vec<String> =
            faults.iter().map(|f| format!("{}:{} {}", f.line, f.column, f.message)).collect();
        assert_eq!(
            said,
            [
                "2:1 unknown key `trust_domian`",
                "1:16 not a trust domain: the trust domain holds 'C'; allowed are a-z, 0-9, `.`, `-` and `_`",
                "4:10 `broker` is not an address",
                "5:14 `management` must be a loopback address",
                "1:1 `advertise.broker` is missing: the `host:port` that other machines reach",
                "1:1 `advertise.enrolment` is missing: the `host:port` that other machines reach",
                "7:8 `kind` is `key-file` or `passphrase`",
                "9:15 `caller_rate` is a whole number, 1 to 1000000",
            ]
        );
    }

    #[test]
    fn federation_is_off_until_it_is_said_whole() {
        let with = |lines: &str| {
            let text = format!("{GOOD}[federation]\n{lines}\n");
            BrokerConfig::parse("broker.toml", &text)
        };
        let plain = BrokerConfig::parse("broker.toml", GOOD).unwrap();
        assert_eq!(plain.federation, FederationConfig::default());
        assert_eq!(with("").unwrap(), plain);
        for good in [
            "web_roots = \"/r.pem\"",
            "listen = \"127.0.0.1:0\"\nprofile = \"https_spiffe\"",
            "listen = \"[::1]:1\"\nprofile = \"https_web\"\ncertificate = \"/c\"\nkey = \"/k\"\npath = \"/b\"",
        ] {
            let config = with(good).unwrap();
            assert_ne!(config.federation, plain.federation, "{good}");
            assert_eq!(BrokerConfig::parse("broker.toml", &config.render()), Ok(config), "{good}");
        }
        for bad in [
            "profile = \"https_spiffe\"",
            "listen = \"127.0.0.1:0\"",
            "listen = \"x\"\nprofile = \"https_spiffe\"",
            "listen = 1",
            "listen = \"127.0.0.1:0\"\nprofile = \"https\"",
            "listen = \"127.0.0.1:0\"\nprofile = \"https_web\"\nkey = \"/k\"",
            "listen = \"127.0.0.1:0\"\nprofile = \"https_spiffe\"\nkey = \"/k\"",
            "listen = \"127.0.0.1:0\"\nprofile = \"https_spiffe\"\npath = \"b\"",
            "lisen = \"127.0.0.1:0\"",
        ] {
            assert_eq!(with(bad).unwrap_err().len(), 1, "{bad}");
        }
    }

    #[test]
    fn half_a_file_is_a_fault_not_a_default() {
        for text in
            ["", "trust_domain = ", "[seal", "\u{0}", "trust_domain = \"a\"\ntrust_domain = \"b\""]
        {
            assert!(BrokerConfig::parse("broker.toml", text).is_err(), "{text:?}");
        }
    }
}
