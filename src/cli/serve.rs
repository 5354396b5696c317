//! init, agent, login, dev, demo, recover, restore, config check.

use std::io::{IsTerminal as _, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::json;
use tracing_subscriber::EnvFilter;

use super::access::Access;
use super::args::{AgentAction, ConfigAction, InitOptions, RecoverAction, RestoreOptions};
use super::block_on;
use super::fault::Fault;
use super::join::join;
use super::output::Output;
use crate::app::{
    self, BrokerConfig, BrokerStart, KeyFile, KeyProvider, Layout, Passphrase, SealConfig,
    SealSource, SealSourceError, Wishes, shutdown_signal,
};
use crate::model::{Clock, SecretValue, SystemClock, TrustDomain};

pub(super) fn clock() -> Arc<dyn Clock> {
    Arc::new(SystemClock)
}

/// The program's own diagnostics: for people on a terminal, JSON otherwise.
pub(super) fn diagnostics() {
    app::raise_files();
    let filter = EnvFilter::try_from_env("DOORWARD_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // A second call (tests in one process) keeps the first subscriber.
    let _ = match std::io::stderr().is_terminal() {
        true => builder.with_target(false).try_init(),
        false => builder.json().try_init(),
    };
}

pub fn config(action: ConfigAction, output: &Output) -> Result<(), Fault> {
    let ConfigAction::Check { file } = action;
    let config = read_config(&file, output)?;
    output.result(
        &format!("{} is sound, for {}", file.display(), config.trust_domain),
        &json!({ "sound": true, "trust_domain": config.trust_domain }),
    );
    Ok(())
}

pub(super) fn read_config(file: &Path, output: &Output) -> Result<BrokerConfig, Fault> {
    let text = std::fs::read_to_string(file).map_err(|error| {
        Fault::failed(format!("can't read `{}`", file.display())).cause(error.to_string())
    })?;
    BrokerConfig::parse(&file.display().to_string(), &text).map_err(|faults| {
        for fault in &faults {
            match output.is_json() {
                true => output.text(&serde_json::to_string(fault).unwrap_or_default()),
                false => eprintln!("{}", fault.render()),
            }
        }
        Fault::failed(format!("{} faults in `{}`", faults.len(), file.display()))
    })
}

/// Why there is no passphrase, and where one could come from.
pub(super) fn no_passphrase(error: SealSourceError) -> Fault {
    let fault = Fault::of(&error);
    match error {
        SealSourceError::NoTerminal => fault.hint(
            "use `--passphrase-file FILE`; `-` is standard input, and systemd has \
             `LoadCredentialEncrypted=doorward-passphrase:…`",
        ),
        _ => fault,
    }
}

/// What the options of `init` ask for: the seal, and where the broker is and says that it is.
fn wishes(options: &InitOptions) -> Result<(Wishes, Option<Box<dyn KeyProvider>>), Fault> {
    let trust_domain = TrustDomain::parse(&options.trust_domain).map_err(|error| {
        Fault::usage(format!("`{}` is not a trust domain", options.trust_domain))
            .cause(error.to_string())
    })?;
    let place = |option: &str, address: std::net::SocketAddr| match address.port() {
        0 => Err(Fault::usage(format!("`{option} {address}` names no port")).hint(
            "join tokens carry the port, so it can't be left to the system; e.g. 0.0.0.0:8443",
        )),
        port => Ok(format!("{}:{port}", options.advertise)),
    };
    let advertise = place("--listen", options.listen)?;
    let advertise_enrolment = place("--listen-enrolment", options.listen_enrolment)?;
    let (seal, provider): (SealConfig, Option<Box<dyn KeyProvider>>) =
        match (options.seal == "passphrase", &options.key_file) {
            (true, _) => {
                let source = SealSource { passphrase_file: options.passphrase_file.clone() };
                let text = source.passphrase(true).map_err(no_passphrase)?;
                (SealConfig::Passphrase, Some(Box::new(Passphrase(text))))
            }
            (false, Some(path)) => {
                let path = std::path::absolute(path).unwrap_or_else(|_| path.clone());
                (SealConfig::KeyFile(path.clone()), Some(Box::new(KeyFile(path))))
            }
            (false, None) => (SealConfig::KeyFile(PathBuf::from("seal.key")), None),
        };
    let config = BrokerConfig {
        trust_domain,
        listen: options.listen,
        enrolment: options.listen_enrolment,
        management: options.management,
        advertise,
        advertise_enrolment,
        oidc_issuer: None,
        seal,
        caller_rate: crate::model::limits::CALLER_RATE,
        denial_rate: crate::model::limits::DENIAL_RATE,
        threads: None,
        methods: app::EnrolmentConfig::default(),
        federation: app::FederationConfig::default(),
        upstream: None,
    };
    Ok((Wishes { config, operator: options.operator.clone() }, provider))
}

pub fn init(options: InitOptions, output: &Output) -> Result<(), Fault> {
    let (wishes, provider) = wishes(&options)?;
    let made = block_on(async {
        app::init(&options.dir, &wishes, provider, clock()).await.map_err(|error| Fault::of(&error))
    })?;
    let token = String::from_utf8_lossy(made.operator_token.expose()).into_owned();
    if let Some(file) = &options.token_file {
        app::write_private(file, token.as_bytes()).map_err(|error| Fault::of(&error))?;
    }
    let dir = options.dir.display();
    let shown = match &options.token_file {
        Some(file) => format!("token in {}", file.display()),
        None => token.clone(),
    };
    let human = match options.seal == "passphrase" {
        true => {
            "\nA passphrase means a person at each start (`doorward unseal`), or a systemd credential\n\
                 (LoadCredentialEncrypted=doorward-passphrase:…)."
        }
        false => {
            "\nThe seal is a key file: whoever reads the whole directory can open it. Keep the\n\
                  key elsewhere (`--key-file`) or give it by LoadCredentialEncrypted."
        }
    };
    output.result(
        &format!(
            "made a broker for {} in {dir}{human}\n\n\
             start it:   doorward broker {dir}\n\
             log in:     doorward login -   (within 24 hours, once, with this token)\n\n{shown}",
            wishes.config.trust_domain
        ),
        &json!({
            "dir": options.dir, "trust_domain": wishes.config.trust_domain,
            "operator_token": options.token_file.is_none().then_some(token),
            "log_vkey": made.log_vkey, "root": made.root,
        }),
    );
    Ok(())
}

/// A token from the command line, or from standard input for `-`.
pub(super) fn token(text: &str) -> Result<SecretValue, Fault> {
    if text != "-" {
        return Ok(SecretValue::new(text.as_bytes().to_vec()));
    }
    let mut bytes = zeroize::Zeroizing::new(Vec::with_capacity(4096));
    std::io::stdin()
        .lock()
        .take(4096)
        .read_to_end(&mut bytes)
        .map_err(|error| Fault::failed("can't read the token").cause(error.to_string()))?;
    Ok(SecretValue::new(bytes.trim_ascii().to_vec()))
}

pub(super) fn as_text(token: &SecretValue) -> Result<&str, Fault> {
    std::str::from_utf8(token.expose()).map_err(|_| Fault::usage("the token is not text"))
}

pub fn login(text: &str, replace: bool, access: &Access, output: &Output) -> Result<(), Fault> {
    let (token, dir) = (token(text)?, access.identity_or_home()?);
    let id = block_on(async {
        let login = app::login(as_text(&token)?, &dir, replace, clock());
        login.await.map_err(|error| enrol_fault(error, "the token"))
    })?;
    output.result(
        &format!(
            "logged in as {id}\nthe identity lies in {0}\nuse it:  export DOORWARD_IDENTITY={0}",
            dir.display()
        ),
        &json!({ "spiffe_id": id, "identity": dir }),
    );
    Ok(())
}

/// Why nobody was enrolled; `what` was shown.
pub(super) fn enrol_fault(error: app::EnrolError, what: &str) -> Fault {
    match error {
        app::EnrolError::Client(error) => {
            let mut fault = Fault::from(error);
            if fault.exit == 3 {
                // The broker does not tell a stranger which of them it is; its log does.
                fault.hint = Some(match what {
                    "the token" => {
                        format!("{what} is wrong, was used already or has ended; ask for a new one")
                    }
                    _ => {
                        format!("{what} is not let in; the broker's log tells which rule it breaks")
                    }
                });
            }
            fault
        }
        app::EnrolError::Home(error) => {
            Fault { hint: error.hint().map(str::to_owned), ..Fault::of(&error) }
        }
        app::EnrolError::Key(error) => {
            Fault { hint: error.hint().map(str::to_owned), ..Fault::of(&error) }
        }
        app::EnrolError::Kind { command, .. } => {
            Fault::of(&error).hint(format!("redeem it with `{command}`"))
        }
        other => Fault::of(&other),
    }
}

pub fn agent(dir: PathBuf, action: Option<AgentAction>, output: &Output) -> Result<(), Fault> {
    match action {
        Some(AgentAction::Join(options)) => join(&dir, *options, output),
        None => {
            diagnostics();
            let runtime = app::agent_runtime(&dir)
                .map_err(|error| Fault::failed("no runtime").cause(error.to_string()))?;
            runtime.block_on(async {
                let stop = shutdown_signal().map_err(|error| Fault::of(&error))?;
                app::run_agent(&dir, clock(), stop).await.map_err(|error| {
                    Fault::of(&error).hint("`doorward doctor` looks at the machine")
                })
            })
        }
    }
}

pub fn dev(dir: Option<PathBuf>, output: &Output) -> Result<(), Fault> {
    diagnostics();
    block_on(async {
        let stop = shutdown_signal().map_err(|error| Fault::of(&error))?;
        let told = |text: &str, value: &serde_json::Value| output.result(text, value);
        app::dev(dir, clock(), stop, &told).await.map_err(|error| Fault::of(error.as_ref()))
    })
}

pub fn demo(keep: bool, output: &Output) -> Result<(), Fault> {
    let demo = app::Demo::new(output.is_json(), keep);
    demo.run().map_err(|error| Fault::failed("the demo did not come to its end").cause(error))
}

pub fn recover(action: RecoverAction, output: &Output) -> Result<(), Fault> {
    let RecoverAction::Operator { dir, name, passphrase_file } = action;
    let layout = Layout::new(&dir);
    let config = read_config(&layout.config(), output)?;
    let provider = match BrokerStart::key_file(&layout, &config) {
        Some(provider) => provider,
        None => SealSource { passphrase_file }.provider(&config.seal).map_err(no_passphrase)?,
    };
    let token = block_on(async {
        let start = BrokerStart { layout, config, provider, clock: clock() };
        app::recover_operator(start, &name).await.map_err(|error| {
            Fault::of(&error).hint("stop the broker first; it holds the store and the log")
        })
    })?;
    let text = String::from_utf8_lossy(token.expose());
    output.result(&text, &json!({ "token": text, "name": name }));
    Ok(())
}

pub fn restore(options: RestoreOptions, output: &Output) -> Result<(), Fault> {
    let key = std::fs::read(&options.recipient_key).map_err(|error| {
        Fault::failed("can't read the recipient's private key").cause(error.to_string())
    })?;
    let key = SecretValue::new(key);
    let parts = app::Restore {
        data: &options.file,
        keys: &options.keys,
        recipient_key: &key,
        log: &options.log,
        to: &options.to,
    };
    block_on(async { app::restore(&parts).await.map_err(|error| Fault::of(&error)) })?;
    output.result(
        &format!(
            "restored into {0}; join tokens are void\nstart it:  doorward broker {0}",
            options.to.display()
        ),
        &json!({ "dir": options.to }),
    );
    Ok(())
}
