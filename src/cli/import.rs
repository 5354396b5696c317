//! `import`: a .env file, a JSON object, or a Kubernetes Secret manifest, into secrets.

use std::collections::BTreeMap;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::json;
use zeroize::Zeroizing;

use super::access::Access;
use super::fault::Fault;
use super::output::Output;
use crate::model::{Answer, Ask, Diagnostic, SecretName, SecretPrefix, SecretValue, limits};

/// Bytes of a file to import.
const FILE_MAX: usize = 4 * 1024 * 1024;
/// Secrets of one file.
const ITEMS_MAX: usize = 1024;

/// What a file holds, by the last part of each name.
type Items = BTreeMap<String, SecretValue>;

pub async fn import(
    file: &Path,
    prefix: &str,
    dry_run: bool,
    access: &Access,
    output: &Output,
) -> Result<(), Fault> {
    let bare = prefix.strip_prefix("secret/").unwrap_or(prefix).trim_end_matches('/');
    let prefix = SecretPrefix::parse(bare).map_err(|error| {
        Fault::usage(format!("`{prefix}` is not a prefix")).cause(error.to_string())
    })?;
    let text = read(file)?;
    let shown = file.display().to_string();
    let items = parse(&shown, &text)?;
    let named = named(&prefix, items)?;
    if dry_run {
        for (name, value) in &named {
            output.result(
                &format!("would store secret/{name} ({} bytes)", value.len()),
                &json!({ "name": name, "bytes": value.len(), "stored": false }),
            );
        }
        return Ok(());
    }
    let asking = access.connect().await?;
    for (name, value) in named {
        let ask = Ask::Write { name: name.clone(), cas: None, labels: None, staged: false };
        let (request, released) = asking.ask(ask, value).await?;
        let Answer::Written { version, .. } = released.answer else {
            return Err(super::secrets::unexpected(&released));
        };
        output.result(
            &format!("stored secret/{name} version {version}"),
            &json!({ "name": name, "version": version, "stored": true, "request": request }),
        );
    }
    Ok(())
}

fn read(file: &Path) -> Result<Zeroizing<String>, Fault> {
    use std::io::Read as _;
    let fault = |error: std::io::Error| {
        Fault::failed(format!("can't read `{}`", file.display())).cause(error.to_string())
    };
    let most = u64::try_from(FILE_MAX + 1).unwrap_or(u64::MAX);
    let mut text = Zeroizing::new(String::new());
    let opened = std::fs::File::open(file).map_err(fault)?;
    opened.take(most).read_to_string(&mut text).map_err(fault)?;
    if text.len() > FILE_MAX {
        return Err(Fault::failed(format!("`{}` is over {FILE_MAX} bytes", file.display())));
    }
    Ok(text)
}

fn named(prefix: &SecretPrefix, items: Items) -> Result<Vec<(SecretName, SecretValue)>, Fault> {
    if items.is_empty() {
        return Err(Fault::failed("the file holds no values"));
    }
    if items.len() > ITEMS_MAX {
        return Err(Fault::failed(format!("the file holds more than {ITEMS_MAX} values")));
    }
    let mut named = Vec::new();
    for (key, value) in items {
        let name = SecretName::parse(&format!("{prefix}/{key}")).map_err(|error| {
            Fault::failed(format!("`{key}` can't be part of a name"))
                .cause(error.to_string())
                .hint("nothing was stored; rename it in the file")
        })?;
        if value.len() > limits::VALUE_MAX {
            return Err(Fault::failed(format!(
                "the value of `{key}` is over {} bytes",
                limits::VALUE_MAX
            ))
            .hint("nothing was stored"));
        }
        named.push((name, value));
    }
    Ok(named)
}

/// Knows the form by the name, and by the content where the name says nothing.
fn parse(file: &str, text: &str) -> Result<Items, Fault> {
    let lower = file.to_ascii_lowercase();
    let start = text.trim_start();
    if lower.ends_with(".yaml") || lower.ends_with(".yml") {
        kubernetes(file, text)
    } else if lower.ends_with(".json") || start.starts_with('{') {
        json_object(file, text)
    } else {
        dotenv(file, text)
    }
}

#[derive(Deserialize)]
struct Manifest {
    kind: String,
    #[serde(default)]
    data: BTreeMap<String, String>,
    #[serde(rename = "stringData", default)]
    string_data: BTreeMap<String, String>,
}

impl Drop for Manifest {
    fn drop(&mut self) {
        for value in self.data.values_mut().chain(self.string_data.values_mut()) {
            zeroize::Zeroize::zeroize(value);
        }
    }
}

impl Manifest {
    fn items(&mut self, file: &str) -> Result<Items, Fault> {
        if self.kind != "Secret" {
            let kind: String = self.kind.chars().take(40).collect();
            return Err(Fault::failed(format!("`{file}` is a manifest of kind `{kind}`"))
                .hint("only manifests of kind `Secret` can be imported"));
        }
        let mut items = Items::new();
        for (key, text) in &self.data {
            let compact: Zeroizing<String> =
                Zeroizing::new(text.split_whitespace().collect::<String>());
            // The decoder's own words would show a byte of the value.
            let bytes = STANDARD.decode(compact.as_bytes()).map_err(|_| {
                Fault::failed(format!("`data.{key}` of `{file}` is not base64"))
                    .hint("plain text belongs under `stringData`")
            })?;
            items.insert(key.clone(), SecretValue::new(bytes));
        }
        // The API server lets stringData win over data.
        for (key, text) in &self.string_data {
            items.insert(key.clone(), SecretValue::new(text.clone().into_bytes()));
        }
        Ok(items)
    }
}

fn kubernetes(file: &str, text: &str) -> Result<Items, Fault> {
    let mut manifest: Manifest = serde_saphyr::from_str(text).map_err(|error| {
        let line = error.location().map(|at| format!(" at line {}", at.line()));
        Fault::failed(format!(
            "`{file}` is not a Kubernetes Secret manifest{}",
            line.unwrap_or_default()
        ))
        .hint("one document with `kind: Secret` and `data` or `stringData`")
    })?;
    manifest.items(file)
}

/// A flat object of text, or a Kubernetes Secret in JSON.
fn json_object(file: &str, text: &str) -> Result<Items, Fault> {
    if let Ok(mut manifest) = serde_json::from_str::<Manifest>(text) {
        return manifest.items(file);
    }
    let pairs: Pairs = serde_json::from_str(text).map_err(|error| {
        Fault::failed(format!("`{file}` is not a flat JSON object of text"))
            .cause(format!("line {}, column {}", error.line(), error.column()))
            .hint("`{\"name\": \"value\", …}`, each name once")
    })?;
    Ok(pairs.0)
}

/// A JSON object of text values, each name once.
struct Pairs(Items);

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visit;
        impl<'de> serde::de::Visitor<'de> for Visit {
            type Value = Pairs;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a flat object of text")
            }
            fn visit_map<A: serde::de::MapAccess<'de>>(
                self,
                mut map: A,
            ) -> Result<Pairs, A::Error> {
                let mut items = Items::new();
                while let Some((key, value)) = map.next_entry::<String, String>()? {
                    if items.insert(key, SecretValue::new(value.into_bytes())).is_some() {
                        return Err(serde::de::Error::custom("a name stands twice"));
                    }
                }
                Ok(Pairs(items))
            }
        }
        deserializer.deserialize_map(Visit)
    }
}

/// `NAME=value` lines; `export`, comments and quotes as shells and dotenv libraries take them.
fn dotenv(file: &str, text: &str) -> Result<Items, Fault> {
    let mut items = Items::new();
    let mut faults = Vec::new();
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        let start = at;
        at += line.len();
        let bare = line.trim();
        if bare.is_empty() || bare.starts_with('#') {
            continue;
        }
        // The line's text is not shown: it may hold the secret.
        let mut fault = |message: &str| {
            let mut fault = Diagnostic::at(file, text, start, 1, message);
            fault.source = "…".to_owned();
            faults.push(fault);
        };
        let bare = bare.strip_prefix("export ").unwrap_or(bare).trim_start();
        let Some((key, value)) = bare.split_once('=') else {
            fault("no `=`: a line is `NAME=value`");
            continue;
        };
        let Some(value) = unquote(value.trim()) else {
            fault("a quote is not closed, or text follows it");
            continue;
        };
        if items.insert(key.trim().to_owned(), value).is_some() {
            fault("this name stands twice");
        }
    }
    match faults.is_empty() {
        true => Ok(items),
        false => {
            let all: Vec<String> = faults.iter().map(Diagnostic::render).collect();
            Err(Fault::failed(format!("`{file}` has faults; nothing was stored"))
                .cause(format!("\n{}", all.join("\n").trim_end())))
        }
    }
}

fn unquote(text: &str) -> Option<SecretValue> {
    let quote = text.chars().next().filter(|c| matches!(c, '"' | '\''));
    let Some(quote) = quote else {
        let bare = text.split(" #").next().unwrap_or("").trim_end();
        return Some(SecretValue::new(bare.as_bytes().to_vec()));
    };
    let mut out = String::new();
    let mut chars = text.chars();
    chars.next();
    loop {
        match chars.next()? {
            c if c == quote => break,
            '\\' if quote == '"' => out.push(match chars.next()? {
                'n' => '\n',
                't' => '\t',
                'r' => '\r',
                other => other,
            }),
            c => out.push(c),
        }
    }
    let rest = chars.as_str().trim();
    (rest.is_empty() || rest.starts_with('#')).then(|| SecretValue::new(out.into_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(items: &Items) -> Vec<(String, String)> {
        let text = |value: &SecretValue| String::from_utf8_lossy(value.expose()).into_owned();
        items.iter().map(|(key, value)| (key.clone(), text(value))).collect()
    }

    #[test]
    fn a_kubernetes_secret_is_read() {
        let text = "apiVersion: v1\nkind: Secret\nmetadata:\n  name: db\ntype: Opaque\n\
                    data:\n  password: aHVudGVyMg==\nstringData:\n  user: app\n";
        let items = parse("db.yaml", text).unwrap();
        let want = [("password".to_owned(), "hunter2".to_owned()), ("user".into(), "app".into())];
        assert_eq!(plain(&items), want);
    }

    #[test]
    fn other_manifests_and_bad_base64_are_named() {
        let fault = parse("x.yaml", "kind: ConfigMap\ndata: {a: b}\n").unwrap_err();
        assert!(fault.error.contains("ConfigMap"), "{fault:?}");
        let fault = parse("x.yaml", "kind: Secret\ndata:\n  a: '***'\n").unwrap_err();
        assert!(fault.error.contains("data.a"), "{fault:?}");
        assert!(parse("x.yaml", "kind: Secret\ndata: {a: YQ==, a: Yg==}\n").is_err(), "twice");
        assert!(parse("x.yaml", &"[".repeat(100_000)).is_err());
    }

    #[test]
    fn dotenv_is_read_as_shells_do() {
        let text = "# c\nexport A=1\nB=\"x\\ny\" # c\nC='$A'\nD=plain # c\n";
        let want = [("A", "1"), ("B", "x\ny"), ("C", "$A"), ("D", "plain")];
        let got = plain(&parse(".env", text).unwrap());
        let want: Vec<_> = want.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        assert_eq!(got, want);
    }

    #[test]
    fn faults_show_no_value() {
        let fault = parse(".env", "A=1\nhunter2\nB=\"hunter3\n").unwrap_err();
        let said = format!("{fault:?}");
        assert!(said.contains(":2:1") && said.contains(":3:1"), "{said}");
        assert!(!said.contains("hunter"), "{said}");
    }

    #[test]
    fn json_names_stand_once() {
        assert_eq!(plain(&parse("x.json", r#"{"a":"1"}"#).unwrap()), [("a".into(), "1".into())]);
        assert!(parse("x.json", r#"{"a":"1","a":"2"}"#).is_err());
        assert!(parse("x.json", r#"{"a":{"b":"1"}}"#).is_err());
    }
}
