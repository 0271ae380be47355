package main

import (
	"bytes"
	"fmt"
	"strings"
)

// document is the reference, for people.
func document(node, backend []key) []byte {
	var out bytes.Buffer
	out.WriteString(`<!-- Made by make generate of config/shape.go and config/backend.go: change it there. -->

# Configuration

Every key of both files, with what it may hold and what it is when it is left out. [deploy/halfproxy.yaml](../deploy/halfproxy.yaml)
and [deploy/backend.yaml](../deploy/backend.yaml) have them all with an example and more words.
` + "`halfproxy check --config FILE`" + ` says everything that is wrong with a file at once.

Editors that know JSON Schema complete keys and mark what is wrong when the first line
names the schema:

` + "```yaml\n# yaml-language-server: $schema=/usr/share/halfproxy/halfproxy.schema.json\n```" + `

backend.schema.json is that of backend.yaml, and services.schema.json that of files that
` + "`include`" + ` names.

A schema sees one value at a time: what does not go together ` + "`check`" + ` alone can say.

| value | how it is written |
|---|---|
| duration | ` + "`500ms`, `9s`, `1m30s`, `24h`: always with its unit" + ` |
| share | whole percents: ` + "`30%`" + ` |
| number | in decimal digits, without quotes |
| name | letters, digits, dots, dashes and underscores, up to 64, a letter or digit first |
| address | ` + "`192.0.2.1` or `2001:db8::1`" + ` |
| prefix | ` + "`198.51.100.0/24` or `2001:db8:5::/64`" + `, without bits beyond its length |
| address and port | ` + "`192.0.2.1:7946` or `\"[2001:db8::1]:7946\"`; `\"[::]:9870\"` is all addresses" + ` |
| port | ` + "`tcp/443`, `udp/8000-8099`, `sctp/*`" + ` |
| community | ` + "`64512:100`, `64512:1:2` or a well-known name such as `no-export`" + ` |
| path | where it is relative, from the folder of the file that it stands in |

# /etc/halfproxy/halfproxy.yaml

A file that ` + "`include`" + ` names has ` + "`services`" + ` and nothing else.

`)
	table(&out, node)
	sections(&out, "", node)
	out.WriteString("# /etc/halfproxy/backend.yaml\n\n")
	table(&out, backend)
	sections(&out, "", backend)
	return append(bytes.TrimRight(out.Bytes(), "\n"), '\n')
}

// sections writes a table for each mapping below path.
func sections(out *bytes.Buffer, path string, keys []key) {
	for _, k := range keys {
		if k.keys == nil {
			continue
		}
		at := path + k.name
		if k.form == listOfMappings {
			at += "[]"
		}
		fmt.Fprintf(out, "## %s\n\n%s\n\n", at, k.doc)
		table(out, k.keys)
		sections(out, at+".", k.keys)
	}
}

func table(out *bytes.Buffer, keys []key) {
	out.WriteString("| key | value | default | |\n|---|---|---|---|\n")
	for _, k := range keys {
		cells := []string{"`" + k.name + "`", values(k), fallback(k), meaning(k)}
		for i, c := range cells {
			cells[i] = strings.ReplaceAll(c, "|", "\\|")
		}
		fmt.Fprintf(out, "| %s |\n", strings.Join(cells, " | "))
	}
	out.WriteByte('\n')
}

func values(k key) string {
	one := k.kind.words
	if k.words != nil {
		one = "`" + strings.Join(k.words, "`, `") + "`"
	}
	if k.least != "" {
		one += fmt.Sprintf(", %s to %s", k.least, k.most)
	}
	switch k.form {
	case listOfScalars:
		return "list: " + one
	case listOrScalar:
		return one + ", or a list"
	case pairs:
		return "mapping"
	case mapping:
		return "section"
	case listOfMappings:
		return "list of sections"
	}
	return one
}

func fallback(k key) string {
	switch {
	case k.required && k.types != nil:
		return "**required** with " + strings.Join(k.types, ", ")
	case k.unless != "":
		return "**required** without " + k.unless
	case k.required:
		return "**required**"
	case k.literal != "":
		return "`" + k.literal + "`"
	}
	return k.fallback
}

func meaning(k key) string {
	if k.types != nil && !k.required {
		return strings.TrimSpace("Of " + strings.Join(k.types, ", ") + ". " + k.doc)
	}
	return k.doc
}
