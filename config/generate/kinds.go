package main

// kind is what a scalar may be: for editors as JSON types and a pattern, for people
// in words.
type kind struct {
	name    string
	types   []string // of JSON
	pattern string   // of what is a string
	words   string
}

const (
	v4     = `((25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])\.){3}(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])`
	v6     = `[0-9A-Fa-f]*:[0-9A-Fa-f:]*(` + v4 + `)?`
	v4Net  = v4 + `/(3[0-2]|[12]?[0-9])`
	v6Net  = v6 + `/(12[0-8]|1[01][0-9]|[1-9]?[0-9])`
	number = `(6553[0-5]|655[0-2][0-9]|65[0-4][0-9]{2}|6[0-4][0-9]{3}|[1-5][0-9]{4}|[1-9][0-9]{0,3})` // of a port
	span   = `^([0-9]+(\.[0-9]+)?(ns|us|ms|s|m|h))+$`
)

var word = kind{"word", text, ``, "word"}

var (
	text     = []string{"string"}
	integers = []string{"integer"}
)

// kinds are those that tags of the shape name.
var kinds = byName(
	word,
	kind{"text", text, `^[^\x00]+$`, "text"},
	kind{"any", []string{"string", "number", "boolean"}, ``, "text; a number will do"},
	kind{"name", text, `^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`, "name"},
	kind{"interface", text, `^[^/: \t]{1,15}$`, "network interface"},
	kind{"path", text, `^[^\x00]+$`, "path"},
	kind{"socket", text, `^/[^\x00]{0,105}[^/\x00]$`, "absolute path"},
	kind{"boolean", []string{"boolean"}, ``, "true or false"},
	kind{"integer", integers, ``, "number"},
	kind{"asn", integers, ``, "AS number"},
	kind{"duration", text, span, "duration"},
	kind{"seconds", text, span, "duration"},
	kind{"share", text, `^(100|[1-9]?[0-9])%$`, "share"},
	kind{"quorum", []string{"integer", "string"}, `^(100|[1-9][0-9]?)%$`, "number or share"},
	kind{"ipv4", text, `^` + v4 + `$`, "IPv4 address"},
	kind{"address", text, `^(` + v4 + `|` + v6 + `)$`, "address"},
	kind{"specifics", text, `^(all|none|` + v4 + `|` + v6 + `)$`, "`all`, `none` or address"},
	kind{"prefix", text, `^(` + v4Net + `|` + v6Net + `)$`, "prefix"},
	kind{"network", text, `^(` + v4 + `|` + v6 + `|` + v4Net + `|` + v6Net + `)$`, "address or prefix"},
	kind{"listen", text, `^(` + v4 + `|\[` + v6 + `\]):` + number + `$`, "address and port"},
	kind{"member", text, `^[A-Za-z0-9_.:\[\]-]+$`, "address or name, and port"},
	kind{"port", text, `^(tcp|udp|sctp|udplite)/(\*|` + number + `(-` + number + `)?)$`, "port"},
	kind{"community", text, `^([0-9]+:[0-9]+(:[0-9]+)?|[a-z][a-z-]*)$`, "community"},
	kind{"server_id", []string{"string", "number"}, `^([0-9A-Fa-f]{2}){1,15}$`, "hexadecimal digits"},
	kind{"hex", []string{"string", "number"}, `^ *([0-9A-Fa-f] *[0-9A-Fa-f] *)+$`, "hexadecimal digits"},
	kind{"host", text, `^[A-Za-z0-9_.:-]{1,253}$`, "host name"},
	kind{"target", text, `^/[!-"$-~]*$`, "path of a URL"},
	kind{"status", []string{"string", "integer"}, `^ *[2-5][0-9]{2}(-[2-5][0-9]{2})? *(, *[2-5][0-9]{2}(-[2-5][0-9]{2})? *)*$`, "HTTP statuses"},
	kind{"mss", []string{"string", "integer"}, `^(auto|off)$`, "`auto`, `off` or number"},
)

func byName(list ...kind) map[string]kind {
	m := make(map[string]kind, len(list))
	for _, k := range list {
		m[k.name] = k
	}
	return m
}
