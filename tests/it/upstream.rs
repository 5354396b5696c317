//! A broker whose authorities go below a company's root, on a real stage: what workloads are given and
//! take of each other across that change, no handshake of theirs failing twice, with libraries that
//! others wrote; and a broker whose company files are gone.

use std::io::Read as _;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use base64::Engine as _;
use doorward::app::Stage;
use doorward::wire::Credentials;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::pki_types::ServerName;
use spiffe::{WorkloadApiClient, X509Source};
use spiffe_rustls::{authorizer, mtls_client};

use super::ca::{acknowledged, ca, of};
use super::journey::program;
use super::scene::{outside, register, until};
use super::workload_api::{endpoint, first_given, holds_together, runtime, soon, stage};

const MOST: Duration = Duration::from_secs(90);

fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "Example AG");
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = true;
    params
}

/// A company's RSA root, and a P-384 authority below it, whose files a broker is given; the root's DER.
fn company(dir: &Path) -> Vec<u8> {
    let key = KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap();
    let root = params("Example Root").self_signed(&key).unwrap();
    let root_params = params("Example Root");
    let issuing_key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    let issuer = Issuer::from_params(&root_params, &key);
    let issuing = params("Example Issuing").signed_by(&issuing_key, &issuer).unwrap();
    std::fs::write(dir.join("company.pem"), issuing.pem()).unwrap();
    std::fs::write(dir.join("root.pem"), root.pem()).unwrap();
    let path = dir.join("company.key");
    std::fs::write(&path, issuing_key.serialize_pem()).unwrap();
    for (file, mode) in [("company.pem", 0o644), ("root.pem", 0o644), ("company.key", 0o600)] {
        let mode = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(dir.join(file), mode).unwrap();
    }
    root.der().to_vec()
}

/// Restarts the broker with authorities to come below the company's.
fn below(stage: &mut Stage) -> Vec<u8> {
    let dir = stage.broker_dir();
    let root = company(&dir);
    let file = dir.join("broker.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    let section = "\n[upstream]\ncertificate = \"company.pem\"\nkey = \"company.key\"\n\
                   roots = \"root.pem\"\n";
    std::fs::write(&file, format!("{text}{section}")).unwrap();
    stage.stop("broker");
    stage.start_broker().unwrap();
    root
}

/// A handshake; once more at once where it fails: the library refuses all peers for the moment between
/// what it was told and what its TLS has taken over («source revision is pending»).
fn shaken(config: &Arc<rustls::ClientConfig>, port: u16) -> Vec<Vec<u8>> {
    let again = |_| {
        std::thread::sleep(Duration::from_millis(200));
        handshake(config, port)
    };
    handshake(config, port).or_else(again).unwrap()
}

/// The chain that the server showed.
fn handshake(config: &Arc<rustls::ClientConfig>, port: u16) -> std::io::Result<Vec<Vec<u8>>> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    let name = ServerName::try_from("not-looked-at.invalid").unwrap();
    let mut tls = rustls::ClientConnection::new(config.clone(), name).unwrap();
    let mut said = Vec::new();
    // A refused client learns of it only when it reads.
    rustls::Stream::new(&mut tls, &mut stream).read_to_end(&mut said)?;
    assert_eq!(said, b"hello\n");
    Ok(tls.peer_certificates().unwrap().iter().map(|der| der.to_vec()).collect())
}

#[test]
fn a_rotation_below_a_companys_root_fails_no_handshake() {
    let mut stage = stage();
    let root = below(&mut stage);
    acknowledged(&stage);
    let me = std::fs::read_link("/proc/self/exe").unwrap();
    let peer = program().with_file_name("examples").join("mtls_server");
    register(&stage, "client", &me);
    register(&stage, "server", &peer);
    let runtime = runtime();
    let _inside = runtime.enter(); // for the libraries' own tasks
    let client = runtime.block_on(WorkloadApiClient::connect_to(endpoint(&stage))).unwrap();
    let first = runtime.block_on(first_given(&client));
    holds_together(&first);
    assert_eq!(first.svids()[0].cert_chain().len(), 1, "a root of its own signs");
    let source = X509Source::builder().endpoint(endpoint(&stage)).build();
    let source = runtime.block_on(soon(source)).unwrap();
    let allowed = authorizer::exact(["spiffe://dev.doorward/server"]).unwrap();
    let config = Arc::new(mtls_client(source.clone()).authorize(allowed).build().unwrap());
    let mut server = Command::new(&peer)
        .arg("spiffe://dev.doorward/client")
        .env("SPIFFE_ENDPOINT_SOCKET", endpoint(&stage))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let out = server.stdout.take().unwrap();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut line).unwrap();
    let port: u16 = line.trim().parse().unwrap();
    assert_eq!(handshake(&config, port).unwrap().len(), 1, "control");

    // Handshakes go on all the while that the broker rotates and ends its first root.
    let (ends, done) = (AtomicBool::new(false), AtomicUsize::new(0));
    let its = || shaken(&config, port);
    let own = || source.svid().unwrap().cert_chain().len();
    std::thread::scope(|scope| {
        let shaking = scope.spawn(|| {
            while !ends.load(Ordering::Relaxed) {
                shaken(&config, port);
                done.fetch_add(1, Ordering::Relaxed);
            }
        });
        let old = of(&ca(&stage, &["show"]), "active").remove(0);
        let first = its();
        ca(&stage, &["prepare"]);
        // Both are given everything anew with the roots of both.
        until(MOST, its, |shown| shown[0] != first[0]);
        let domain = spiffe::TrustDomain::new("dev.doorward").unwrap();
        let roots = || source.bundle_set().unwrap().get(&domain).unwrap().authorities().len();
        until(MOST, roots, |roots| *roots == 2);
        acknowledged(&stage);
        ca(&stage, &["activate"]);
        ca(&stage, &["taint", &old]);
        until(MOST, its, |shown| shown.len() == 3);
        until(MOST, own, |own| *own == 3);
        let revoke = || stage.operator(&["ca", "revoke", &old], None).unwrap();
        until(MOST, || revoke().code, |code| *code == 0);
        until(MOST, roots, |roots| *roots == 1);
        let so_far = done.load(Ordering::Relaxed);
        until(MOST, || done.load(Ordering::Relaxed), |now| *now > so_far + 20);
        ends.store(true, Ordering::Relaxed);
        shaking.join().unwrap();
    });

    let second = runtime.block_on(soon(client.fetch_x509_context())).unwrap();
    holds_together(&second);
    let svid = &second.svids()[0];
    assert_eq!(svid.cert_chain().len(), 3, "leaf, Doorward's, the company's");
    let bundle = second.bundle_set().get(svid.spiffe_id().trust_domain()).unwrap();
    let roots: Vec<_> = bundle.authorities().iter().map(|it| it.as_bytes().to_vec()).collect();
    assert_eq!(roots, [root], "nothing but the company's root is published");
    let standing = ca(&stage, &["show"]);
    assert!(standing["authorities"][0]["upstream"]["serial"].is_string(), "{standing}");
    let agent = Credentials::load(&stage.dir().join("agent")).unwrap();
    assert_eq!(agent.bundle.len(), 1, "the agent knows the authority itself");
    assert_eq!(agent.chain[1], agent.bundle[0]);
    openssl_agrees(&stage, &second);
    let _ = server.kill();
    let _ = server.wait();
    // A device that comes new is let in by a token that names the authority.
    let (dir, place) =
        (stage.dir().join("second"), stage.dir().join("second").display().to_string());
    let token =
        stage.operator_must(&["token", "create", "--class", "server"], None).unwrap().json();
    let token = token["token"].as_str().unwrap().to_owned();
    let args = ["agent", "--dir", &place, "join", "-", "--name", "second"];
    let joined = stage.run(&args, Some(token.as_bytes())).unwrap();
    assert_eq!(joined.code, 0, "{}", joined.stderr);
    assert_eq!(Credentials::load(&dir).unwrap().chain.len(), 3);
}

/// A verifier that shares nothing with ours.
fn openssl_agrees(stage: &Stage, context: &spiffe::X509Context) {
    let Some(openssl) = outside("openssl", "openssl") else { return };
    let dir = stage.dir();
    let pem = |der: &[u8]| {
        let text = base64::engine::general_purpose::STANDARD.encode(der);
        let lines: Vec<_> = text.as_bytes().chunks(64).map(String::from_utf8_lossy).collect();
        format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
    };
    let svid = &context.svids()[0];
    let chain: Vec<String> = svid.cert_chain().iter().map(|it| pem(it.as_bytes())).collect();
    let bundle = context.bundle_set().get(svid.spiffe_id().trust_domain()).unwrap();
    let roots: String = bundle.authorities().iter().map(|it| pem(it.as_bytes())).collect();
    let file = |name: &str, text: &str| {
        let path = dir.join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let roots = file("roots.pem", &roots);
    let between = file("between.pem", &chain[1..].concat());
    let leaf = file("leaf.pem", &chain[0]);
    let verify = |between: &Path| {
        let mut command = Command::new(&openssl);
        command.args(["verify", "-x509_strict", "-purpose", "sslclient", "-CAfile"]).arg(&roots);
        let said = command.arg("-untrusted").arg(between).arg(&leaf).output().unwrap();
        (said.status.success(), String::from_utf8_lossy(&said.stderr).into_owned())
    };
    let (good, said) = verify(&between);
    assert!(good, "{said}");
    assert!(!verify(&leaf).0, "control: without what stands between");
}

#[test]
fn without_its_files_a_broker_goes_on_and_says_what_the_next_authority_lacks() {
    let mut stage = Stage::with_program(program(), None).unwrap();
    below(&mut stage);
    for step in [&["prepare"][..], &["activate", "--force"]] {
        ca(&stage, step);
    }
    let active = of(&ca(&stage, &["show"]), "active");
    std::fs::remove_file(stage.broker_dir().join("company.key")).unwrap();
    stage.stop("broker");
    stage.start_broker().unwrap();
    assert_eq!(of(&ca(&stage, &["show"]), "active"), active);
    let refused = stage.operator(&["ca", "prepare"], None).unwrap();
    assert_eq!(refused.code, 4, "{}", refused.stdout);
    assert!(refused.stderr.contains("company.key") || refused.stdout.contains("company.key"));
    stage.start_agent().unwrap();

    // A key that others can read is none.
    let path = stage.broker_dir().join("company.key");
    std::fs::write(&path, KeyPair::generate().unwrap().serialize_pem()).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let loose = stage.operator(&["ca", "prepare"], None).unwrap();
    assert!(format!("{}{}", loose.stdout, loose.stderr).contains("chmod 600"), "{}", loose.stderr);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    let other = stage.operator(&["ca", "prepare"], None).unwrap();
    assert!(format!("{}{}", other.stdout, other.stderr).contains("not the key of"));
}
