//! `[[enrolment.x509]]`, `[[enrolment.kubernetes]]` and `[[enrolment.tpm]]` of `broker.toml`: who may
//! become a device without a join token. None does unless a section says so.

use std::path::PathBuf;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::config::Reader;
use crate::identity::{is_token_text, service_account};
use crate::model::limits::{AGENT_TTL, AGENT_TTL_MIN, ENROL_METHODS_MAX, SERVICE_ACCOUNTS_MAX};
use crate::model::{DeviceClass, EkKind, TpmTier, did_you_mean};

/// A method's name, in bytes.
const NAME_MAX: usize = 32;

/// All methods of enrolment beside join tokens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EnrolmentConfig {
    /// Device certificates.
    pub x509: Vec<X509Config>,
    /// Pods of Kubernetes clusters.
    pub kubernetes: Vec<KubernetesConfig>,
    /// Machines with a TPM.
    pub tpm: Vec<TpmConfig>,
}

/// One set of TPMs that are taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TpmConfig {
    /// The method's name.
    pub name: String,
    /// Their makers' certificates, PEM; a relative path lies in the broker's directory.
    pub roots: Option<PathBuf>,
    /// The kind of the keys that are taken under them.
    pub key: Option<EkKind>,
    /// The file of single endorsement keys' digests, one a line; likewise.
    pub endorsement_keys: Option<PathBuf>,
    /// What stands behind them.
    pub tier: TpmTier,
    /// The class of its devices.
    pub class: DeviceClass,
    /// Life of their certificates, in seconds.
    pub ttl_s: Option<u32>,
}

/// One set of roots under which device certificates are taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct X509Config {
    /// The method's name.
    pub name: String,
    /// PEM; a relative path lies in the broker's directory.
    pub roots: PathBuf,
    /// The class of its devices.
    pub class: DeviceClass,
    /// Life of their certificates, in seconds.
    pub ttl_s: Option<u32>,
}

/// One cluster whose pods are taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KubernetesConfig {
    /// The method's name: the cluster.
    pub name: String,
    /// Its key set, JSON; a relative path lies in the broker's directory.
    pub jwks: PathBuf,
    /// Its tokens' issuer.
    pub issuer: String,
    /// The audience that its tokens must be for.
    pub audience: String,
    /// Namespace and name of the service accounts that are let in.
    pub service_accounts: Vec<(String, String)>,
    /// The class of its devices.
    pub class: DeviceClass,
    /// Life of their certificates, in seconds.
    pub ttl_s: Option<u32>,
}

/// What both kinds say.
type Common = (String, DeviceClass, Option<u32>);

impl EnrolmentConfig {
    /// The text that reads back to this; nothing where there is no method.
    pub(super) fn render(&self) -> String {
        let quoted = |text: &str| toml::Value::String(text.to_owned()).to_string();
        let common = |kind: &str, name: &str, class: &DeviceClass, ttl_s: Option<u32>| {
            let (name, class) = (quoted(name), quoted(class.as_str()));
            let ttl_s = ttl_s.map(|ttl_s| format!("ttl_s = {ttl_s}\n")).unwrap_or_default();
            format!("\n[[enrolment.{kind}]]\nname = {name}\nclass = {class}\n{ttl_s}")
        };
        let mut text = String::new();
        for it in &self.x509 {
            text += &common("x509", &it.name, &it.class, it.ttl_s);
            text += &format!("roots = {}\n", quoted(&it.roots.display().to_string()));
        }
        for it in &self.kubernetes {
            let accounts = it.service_accounts.iter();
            let accounts: Vec<_> = accounts.map(|(ns, sa)| quoted(&format!("{ns}/{sa}"))).collect();
            text += &common("kubernetes", &it.name, &it.class, it.ttl_s);
            text += &format!(
                "jwks = {}\nissuer = {}\naudience = {}\nservice_accounts = [{}]\n",
                quoted(&it.jwks.display().to_string()),
                quoted(&it.issuer),
                quoted(&it.audience),
                accounts.join(", "),
            );
        }
        for it in &self.tpm {
            text += &common("tpm", &it.name, &it.class, it.ttl_s);
            text += &format!("tier = {}\n", quoted(it.tier.word()));
            let key = it.key.map(|key| format!("key = {}\n", quoted(key.word())));
            text += &key.unwrap_or_default();
            let files = [("roots", &it.roots), ("endorsement_keys", &it.endorsement_keys)];
            for (key, path) in files.iter().filter_map(|(key, path)| Some((key, (*path).as_ref()?)))
            {
                text += &format!("{key} = {}\n", quoted(&path.display().to_string()));
            }
        }
        text
    }
}

impl Reader<'_> {
    /// Reads the sections. A method with a fault is left out; the fault stops the start.
    pub(super) fn enrolment(&mut self, table: &DeTable<'_>) -> EnrolmentConfig {
        let section = self.section(table, "enrolment", &["x509", "kubernetes", "tpm"]);
        let x509 = self.tables(section, "x509", |reader, table| reader.x509(table));
        let kubernetes =
            self.tables(section, "kubernetes", |reader, table| reader.kubernetes(table));
        let tpm = self.tables(section, "tpm", |reader, table| reader.tpm(table));
        let mut names: Vec<&str> = x509.iter().map(|it| it.name.as_str()).collect();
        names.extend(kubernetes.iter().map(|it| it.name.as_str()));
        names.extend(tpm.iter().map(|it| it.name.as_str()));
        names.sort_unstable();
        if let Some([name, _]) = names.windows(2).find(|pair| pair.first() == pair.last()) {
            let span = table.get("enrolment").map_or(0..1, Spanned::span);
            let message = format!("two methods of enrolment are called `{name}`");
            self.fault(span, message, None);
        }
        EnrolmentConfig { x509, kubernetes, tpm }
    }

    /// The tables of one kind.
    fn tables<T>(
        &mut self,
        section: Option<&DeTable<'_>>,
        kind: &str,
        read: impl Fn(&mut Self, &Spanned<DeValue<'_>>) -> Option<T>,
    ) -> Vec<T> {
        let Some(value) = section.and_then(|section| section.get(kind)) else { return Vec::new() };
        let tables = value.get_ref().as_array().filter(|all| all.len() <= ENROL_METHODS_MAX);
        let Some(tables) = tables else {
            let message =
                format!("write `[[enrolment.{kind}]]`, at most {ENROL_METHODS_MAX} times");
            self.fault(value.span(), message, None);
            return Vec::new();
        };
        tables.iter().filter_map(|table| read(self, table)).collect()
    }

    fn x509(&mut self, value: &Spanned<DeValue<'_>>) -> Option<X509Config> {
        let table = self.table(value, &["name", "class", "ttl_s", "roots"])?;
        let common = self.common(value, table);
        let roots = self.needed(value, table, "roots", |text| (!text.is_empty()).then_some(text));
        let (name, class, ttl_s) = common?;
        Some(X509Config { name, roots: roots?.into(), class, ttl_s })
    }

    fn tpm(&mut self, value: &Spanned<DeValue<'_>>) -> Option<TpmConfig> {
        let known = ["name", "class", "ttl_s", "tier", "roots", "key", "endorsement_keys"];
        let table = self.table(value, &known)?;
        let common = self.common(value, table);
        let mut path = |name| {
            let path = |text: &str| (!text.is_empty()).then(|| PathBuf::from(text));
            let there = table.contains_key(name);
            let read = there.then(|| self.needed(value, table, name, path));
            if matches!(read, Some(None)) { None } else { Some(read.flatten()) }
        };
        let (roots, endorsement_keys) = (path("roots"), path("endorsement_keys"));
        let tier = match table.contains_key("tier") {
            true => self.needed(value, table, "tier", TpmTier::parse),
            false => Some(TpmTier::Tpm),
        };
        let key = match table.contains_key("roots") || table.contains_key("key") {
            true => Some(self.needed(value, table, "key", EkKind::parse)?),
            false => None,
        };
        let ((name, class, ttl_s), roots, endorsement_keys, tier) =
            (common?, roots?, endorsement_keys?, tier?);
        if roots.is_none() && endorsement_keys.is_none() {
            let message = "a method for TPMs needs `roots`, `endorsement_keys` or both".to_owned();
            self.fault(value.span(), message, None);
            return None;
        }
        Some(TpmConfig { name, roots, key, endorsement_keys, tier, class, ttl_s })
    }

    fn kubernetes(&mut self, value: &Spanned<DeValue<'_>>) -> Option<KubernetesConfig> {
        let known = ["name", "class", "ttl_s", "jwks", "issuer", "audience", "service_accounts"];
        let table = self.table(value, &known)?;
        let common = self.common(value, table);
        let jwks = self.needed(value, table, "jwks", |text| (!text.is_empty()).then_some(text));
        let visible = |text: &str| is_token_text(text).then(|| text.to_owned());
        let issuer = self.needed(value, table, "issuer", visible);
        let audience = self.needed(value, table, "audience", visible);
        let service_accounts = self.accounts(value, table);
        let (name, class, ttl_s) = common?;
        Some(KubernetesConfig {
            name,
            jwks: jwks?.into(),
            issuer: issuer?,
            audience: audience?,
            service_accounts: service_accounts?,
            class,
            ttl_s,
        })
    }

    fn table<'a>(
        &mut self,
        value: &'a Spanned<DeValue<'a>>,
        known: &[&str],
    ) -> Option<&'a DeTable<'a>> {
        let Some(table) = value.get_ref().as_table() else {
            self.fault(value.span(), "a method of enrolment is a section".to_owned(), None);
            return None;
        };
        self.only(table, known);
        Some(table)
    }

    fn common(&mut self, value: &Spanned<DeValue<'_>>, table: &DeTable<'_>) -> Option<Common> {
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let name = self.needed(value, table, "name", |text| {
            let fits = (1..=NAME_MAX).contains(&text.len()) && text.bytes().all(plain);
            fits.then(|| text.to_owned())
        });
        let class = self.needed(value, table, "class", |text| {
            DeviceClass::parse(text).ok().filter(|class| !class.is_person())
        });
        let seconds = |of: std::time::Duration| u32::try_from(of.as_secs()).unwrap_or(u32::MAX);
        let (least, most) = (seconds(AGENT_TTL_MIN), seconds(AGENT_TTL));
        let ttl_s = self.number(Some(table), "ttl_s", &(least..=most), most);
        let ttl_s = ttl_s.map(|ttl_s| table.contains_key("ttl_s").then_some(ttl_s));
        Some((name?, class?, ttl_s?))
    }

    fn needed<'a, T>(
        &mut self,
        value: &Spanned<DeValue<'_>>,
        table: &'a DeTable<'a>,
        name: &str,
        read: impl FnOnce(&'a str) -> Option<T>,
    ) -> Option<T> {
        let what = match name {
            "name" => "1 to 32 of a-z 0-9 -",
            "class" => "a device class, and not `person`",
            "roots" => "the file of root certificates, PEM",
            "key" => "the kind of the endorsement keys: `p256`, `p384` or `rsa2048`",
            "tier" => "`tpm`, or `vtpm` where a hypervisor stands behind it",
            "endorsement_keys" => "the file of endorsement keys' digests, one a line",
            "jwks" => "the file of the cluster's key set, as at /openid/v1/jwks",
            "issuer" => "the `iss` of the cluster's tokens",
            _ => "the `aud` that tokens must be for",
        };
        let Some(at) = table.get(name) else {
            self.fault(value.span(), format!("`{name}` is missing: {what}"), None);
            return None;
        };
        let read = read(self.text(at, name)?);
        if read.is_none() {
            self.fault(at.span(), format!("`{name}` is {what}"), None);
        }
        read
    }

    fn accounts(
        &mut self,
        value: &Spanned<DeValue<'_>>,
        table: &DeTable<'_>,
    ) -> Option<Vec<(String, String)>> {
        const NAME: &str = "service_accounts";
        let at = table.get(NAME);
        let all = at.and_then(|at| at.get_ref().as_array());
        let all = all.filter(|all| (1..=SERVICE_ACCOUNTS_MAX).contains(&all.len()));
        let read = |one: &Spanned<DeValue<'_>>| one.get_ref().as_str().and_then(service_account);
        let read = all.and_then(|all| all.iter().map(read).collect::<Option<Vec<_>>>());
        if read.is_none() {
            let span = at.map_or_else(|| value.span(), Spanned::span);
            let message = format!("`{NAME}` is a list of \"namespace/name\"");
            let near = table.keys().find_map(|key| did_you_mean(key.get_ref(), [NAME]));
            let help = near.filter(|_| at.is_none()).map(|near| format!("did you mean `{near}`?"));
            self.fault(span, message, help);
        }
        read
    }
}

#[cfg(test)]
mod tests {
    use super::super::config::BrokerConfig;
    use super::*;

    const BASE: &str = "trust_domain = \"corp.example\"\n[advertise]\nbroker = \"b:8443\"\n\
                        enrolment = \"b:8444\"\n[seal]\nkind = \"passphrase\"\n";
    const BOTH: &str = "[[enrolment.x509]]\nname = \"fleet\"\nclass = \"laptop\"\n\
                        roots = \"fleet.pem\"\nttl_s = 900\n[[enrolment.kubernetes]]\n\
                        name = \"prod\"\nclass = \"node\"\njwks = \"/etc/prod.json\"\n\
                        issuer = \"https://kubernetes.default.svc\"\naudience = \"doorward\"\n\
                        service_accounts = [\"doorward/agent\", \"kube-system/agent\"]\n";

    const TPM: &str = "[[enrolment.tpm]]\nname = \"chips\"\nclass = \"server\"\n\
                       tier = \"vtpm\"\nroots = \"makers.pem\"\nkey = \"p384\"\nendorsement_keys = \"ek.txt\"\n";

    #[test]
    fn machines_with_a_tpm_are_let_in_by_roots_or_by_name() {
        let read = parse(TPM).unwrap().tpm.remove(0);
        assert_eq!((read.tier, read.key, read.ttl_s), (TpmTier::Vtpm, Some(EkKind::P384), None));
        assert_eq!(read.endorsement_keys, Some("ek.txt".into()));
        let plain = TPM
            .replace("tier = \"vtpm\"\n", "")
            .replace("roots = \"makers.pem\"\nkey = \"p384\"\n", "");
        let plain = parse(&plain).unwrap().tpm.remove(0);
        assert_eq!((plain.tier, plain.roots), (TpmTier::Tpm, None));
        let whole = BrokerConfig::parse("broker.toml", &format!("{BASE}{BOTH}{TPM}")).unwrap();
        let again = BrokerConfig::parse("broker.toml", &whole.render()).unwrap();
        assert_eq!((again.methods.tpm.len(), &again), (1, &whole));
        for (from, to, want) in [
            ("\"vtpm\"", "\"soft\"", "`tier` is `tpm`"),
            ("key = \"p384\"\n", "", "`key`"),
            ("\"p384\"", "\"p521\"", "`key` is the kind"),
            ("\"makers.pem\"", "\"\"", "`roots` is the file"),
            ("\"ek.txt\"", "7", "`endorsement_keys` is text in quotes"),
            (
                "roots = \"makers.pem\"\nkey = \"p384\"\nendorsement_keys = \"ek.txt\"\n",
                "",
                "needs `roots`",
            ),
            ("tier = ", "teir = ", "unknown key `teir`"),
        ] {
            assert!(TPM.contains(from), "{from}");
            let said = parse(&TPM.replace(from, to)).unwrap_err().join("\n");
            assert!(said.contains(want), "{from} -> {to}: {said}");
        }
    }

    fn parse(text: &str) -> Result<EnrolmentConfig, Vec<String>> {
        let config = BrokerConfig::parse("broker.toml", &format!("{BASE}{text}"));
        config.map(|config| config.methods).map_err(|faults| {
            let say =
                |f: &crate::model::Diagnostic| format!("{}:{} {}", f.line, f.column, f.message);
            faults.iter().map(say).collect()
        })
    }

    #[test]
    fn what_is_written_is_read_back_and_without_a_section_there_is_no_method() {
        assert_eq!(parse("").unwrap(), EnrolmentConfig::default());
        let read = parse(BOTH).unwrap();
        assert_eq!((read.x509[0].ttl_s, read.kubernetes[0].ttl_s), (Some(900), None));
        let accounts = [("doorward", "agent"), ("kube-system", "agent")];
        let accounts = accounts.map(|(ns, sa)| (ns.to_owned(), sa.to_owned()));
        assert_eq!(read.kubernetes[0].service_accounts, accounts);
        let whole = BrokerConfig::parse("broker.toml", &format!("{BASE}{BOTH}")).unwrap();
        let again = BrokerConfig::parse("broker.toml", &whole.render()).unwrap();
        assert_eq!(again, whole);
    }

    #[test]
    fn every_fault_is_named() {
        assert!(parse(BOTH).is_ok(), "control");
        let changed = |from: &str, to: &str| {
            assert!(BOTH.contains(from), "{from}");
            parse(&BOTH.replace(from, to)).unwrap_err().join("\n")
        };
        for (from, to, want) in [
            ("name = \"fleet\"", "name = \"Fleet\"", "8:8 `name` is 1 to 32"),
            ("name = \"fleet\"", "", "`name` is missing"),
            ("name = \"fleet\"", "name = \"prod\"", "two methods of enrolment are called `prod`"),
            ("\"laptop\"", "\"person\"", "`class` is a device class, and not `person`"),
            ("ttl_s = 900", "ttl_s = 299", "`ttl_s` is a whole number, 300 to 3600"),
            ("roots = ", "root = ", "unknown key `root`"),
            ("\"fleet.pem\"", "7", "`roots` is text in quotes"),
            ("\"fleet.pem\"", "\"\"", "`roots` is the file"),
            ("audience = \"doorward\"", "audience = \"\"", "`audience` is the `aud`"),
            ("issuer = ", "isuer = ", "`issuer` is missing"),
            ("\"doorward/agent\"", "\"doorward\"", "`service_accounts` is a list"),
            ("\"doorward/agent\"", "\"*/agent\"", "`service_accounts` is a list"),
            ("\"doorward/agent\", \"kube-system/agent\"", "", "`service_accounts` is a list"),
            ("service_accounts", "service_account", "`service_accounts` is a list"),
            ("[[enrolment.x509]]", "[enrolment.x509]", "write `[[enrolment.x509]]`"),
            ("[[enrolment.x509]]", "[[enrolment.x590]]", "unknown key `x590`"),
        ] {
            let said = changed(from, to);
            assert!(said.contains(want), "{from} -> {to}: {said}");
        }
        let many = "[[enrolment.x509]]\nname = \"a\"\nclass = \"b\"\nroots = \"c\"\n".repeat(17);
        assert!(parse(&many).unwrap_err()[0].contains("at most 16 times"));
    }
}
