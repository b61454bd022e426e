use super::*;

#[test]
fn tools_are_declared_with_secrets_that_are_not_shown() {
    let config = Start::new()
        .file("token", "open-sesame\n")
        .file(
            "runcast.toml",
            "[tools.weather]\nurl = \"https://a.b/{city}\"\nheaders = [\"Authorization=Bearer file:token\", \"X-A=b=c\"]\n\
             parameters = '{\"type\": \"object\", \"properties\": {\"city\": {}}}'\non_cut_off = \"ask\"\n\
             [mcp.files]\ncommand = [\"serve\", \"files\"]\nenv = [\"KEY=env:FILES_KEY\"]\n\
             [agents.a]\nkind = \"model\"\nmodel = \"openai/x\"\ntools = [\"weather\", \"files\"]\n",
        )
        .env("FILES_KEY", "hush-hush")
        .env("RUNCAST_TOOLS_WEATHER_TIMEOUT", "5s")
        .loaded();
    let weather = &config.tools["weather"];
    let headers: Vec<_> =
        weather.headers.iter().map(|(name, value)| (name.as_str(), value.expose_secret().to_owned())).collect();
    assert_eq!(headers, [("Authorization", "Bearer open-sesame".to_owned()), ("X-A", "b=c".to_owned())]);
    assert_eq!((weather.timeout, weather.on_cut_off.as_str()), (Duration::from_secs(5), "ask"));
    assert_eq!(config.mcp["files"].env[0].1.expose_secret(), "hush-hush");
    assert_eq!(config.agents["a"].tools, ["weather", "files"]);
    for text in [config.render(), format!("{config:?}")] {
        assert!(!text.contains("sesame") && !text.contains("hush"), "{text}");
    }
    assert!(config.render().contains("headers = [\"Authorization=***\", \"X-A=***\"]"), "{}", config.render());
}

#[test]
fn tools_that_make_no_sense_are_refused_by_key() {
    for (toml, fault) in [
        ("[tools.x]", "tools.x.url (default): has to be set"),
        ("[tools.x]\nurl = \"file:///etc/passwd\"", "tools.x.url (toml:2): expected a URL that begins with https://"),
        ("[tools.x]\nurl = \"https://{host}/\"", "tools.x.url (toml:2): expected a host"),
        ("[tools.x]\nurl = \"https://a.b/{c}\"", "tools.x.url (toml:2): expected arguments that are properties"),
        (
            "[tools.x]\nurl = \"https://a.b/\"\nheaders = [\"Authorization=env:NOWHERE\"]",
            "tools.x.headers (toml:3): item 1: environment variable NOWHERE is not set",
        ),
        ("[tools.x]\nurl = \"https://a.b/\"\nheaders = [\"Host=a\"]", "tools.x.headers (toml:3): the header host"),
        ("[tools.x]\nurl = \"https://a.b/\"\nmethod = \"get\"", "tools.x.method (toml:3): expected GET or POST"),
        ("[mcp.x]", "mcp.x.command (default), mcp.x.url (default): one of them has to be set"),
        (
            "[mcp.x]\ncommand = [\"a\"]\nurl = \"https://a.b\"",
            "mcp.x.command (toml:2), mcp.x.url (toml:3): only one of them can be set",
        ),
        ("[mcp.x]\ncommand = [\"a\"]\nheaders = [\"A=b\"]", "mcp.x.headers (toml:3): makes no sense"),
        ("[mcp.x]\nurl = \"https://a.b\"\nenv = [\"A=b\"]", "mcp.x.env (toml:3): makes no sense"),
        ("[mcp.x]\ncommand = [\"a\"]\napproved = [\"a=12\"]", "mcp.x.approved (toml:3): item 1: expected tool=pin"),
        (
            "[tools.x]\nurl = \"https://a.b/\"\n[mcp.x]\ncommand = [\"a\"]",
            "tools.x (default), mcp.x (default): have the same name",
        ),
        (
            "[agents.a]\nkind = \"model\"\nmodel = \"openai/x\"\ntools = [\"nothing\"]",
            "agents.a.tools (toml:4): expected names of entries of tools and mcp, or for a model",
        ),
        (
            "[agents.a]\nkind = \"scripted\"\ntools = [\"x\"]\n[tools.x]\nkind = \"http\"\nurl = \"https://a.b/\"",
            "agents.a.tools (toml:3): makes no sense for an agent of kind scripted",
        ),
    ] {
        let text = faults(toml);
        assert!(text.contains(fault), "{toml}\n{text}");
    }
}
