package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// object is a JSON object whose members keep their order.
type object []member

type member struct {
	name  string
	value any
}

func (o object) MarshalJSON() ([]byte, error) {
	var out bytes.Buffer
	out.WriteByte('{')
	for i, m := range o {
		if i > 0 {
			out.WriteByte(',')
		}
		fmt.Fprintf(&out, "%q:", m.name)
		encoder := json.NewEncoder(&out)
		encoder.SetEscapeHTML(false)
		if err := encoder.Encode(m.value); err != nil {
			return nil, err
		}
	}
	out.WriteByte('}')
	return out.Bytes(), nil
}

// schema is a file's shape as JSON Schema. Draft 7 is what editors know best.
func schema(title string, keys []key) []byte {
	root := append(object{{"$schema", "http://json-schema.org/draft-07/schema#"}, {"title", title}}, mappingOf(keys)...)
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	if err := encoder.Encode(root); err != nil {
		panic(err) // nothing here is not JSON
	}
	return out.Bytes()
}

func mappingOf(keys []key) object {
	var properties object
	var required []string
	for _, k := range keys {
		properties = append(properties, member{k.name, property(k)})
		if k.required && k.types == nil {
			required = append(required, k.name)
		}
	}
	o := object{{"type", "object"}, {"additionalProperties", false}, {"properties", properties}}
	if required != nil {
		o = append(o, member{"required", required})
	}
	for _, k := range keys {
		if k.unless != "" {
			o = append(o, member{"anyOf", []object{{{"required", []string{k.name}}}, {{"required", []string{k.unless}}}}})
		}
	}
	if rules := typeRules(keys); rules != nil {
		o = append(o, member{"allOf", rules})
	}
	return o
}

func property(k key) object {
	o := object{{"description", describe(k)}}
	switch k.form {
	case scalar:
		o = append(o, scalarOf(k)...)
	case listOfScalars:
		o = append(o, listOf(k, scalarOf(k))...)
	case listOrScalar:
		o = append(o, member{"anyOf", []object{scalarOf(k), listOf(k, scalarOf(k))}})
	case pairs:
		o = append(o, member{"type", "object"}, member{"additionalProperties", object{{"type", []string{"string", "number", "boolean"}}}})
	case mapping:
		o = append(o, mappingOf(k.keys)...)
	case listOfMappings:
		o = append(o, listOf(k, mappingOf(k.keys))...)
	}
	if k.literal != "" {
		o = append(o, member{"default", k.value(k.literal)})
	}
	return o
}

func listOf(k key, items object) object {
	o := object{{"type", "array"}, {"items", items}}
	if k.some {
		o = append(o, member{"minItems", 1})
	}
	if k.keys == nil && k.kind.name != "any" {
		o = append(o, member{"uniqueItems", true})
	}
	return o
}

func scalarOf(k key) object {
	if k.kind.name == word.name {
		return object{{"enum", k.words}}
	}
	o := object{{"type", k.kind.types[0]}}
	if len(k.kind.types) > 1 {
		o = object{{"type", k.kind.types}}
	}
	if k.kind.pattern != "" {
		o = append(o, member{"pattern", k.kind.pattern})
	}
	least, most := k.least, k.most
	switch k.kind.name {
	case "asn":
		least, most = "1", "4294967295"
		o = append(o, member{"not", object{{"enum", []any{23456, 65535, 4294967295}}}})
	case "quorum":
		least, most = "1", "65536"
	case "mss":
		least, most = "536", "65495"
	case "status":
		least, most = "200", "599"
	}
	if slices.Contains(k.kind.types, "integer") && least != "" {
		o = append(o, member{"minimum", json.Number(least)}, member{"maximum", json.Number(most)})
	}
	return o
}

// value is a default as JSON has it.
func (k key) value(literal string) any {
	if _, err := strconv.ParseInt(literal, 10, 64); err == nil && slices.Contains(k.kind.types, "integer") {
		return json.Number(literal)
	}
	if slices.Contains(k.kind.types, "boolean") {
		return literal == "true"
	}
	return literal
}

// describe is what an editor shows beside a key.
func describe(k key) string {
	text := []string{k.doc}
	if k.least != "" && k.kind.types[0] == "string" {
		text = append(text, fmt.Sprintf("From %s to %s.", k.least, k.most))
	}
	if k.types != nil {
		text = append(text, fmt.Sprintf("Of type %s.", strings.Join(k.types, ", ")))
	}
	if k.literal != "" {
		text = append(text, fmt.Sprintf("Default: %s.", k.literal))
	}
	if k.fallback != "" {
		text = append(text, fmt.Sprintf("Default: %s.", k.fallback))
	}
	return strings.TrimSpace(strings.Join(text, " "))
}

// typeRules say which keys a check has to have, and cannot have, by its type.
func typeRules(keys []key) (rules []object) {
	usual := ""
	groups := map[string][]key{} // by the types
	var order []string
	for _, k := range keys {
		if k.name == "type" {
			usual = k.literal
		}
		if k.types != nil {
			types := strings.Join(k.types, ",")
			if groups[types] == nil {
				order = append(order, types)
			}
			groups[types] = append(groups[types], k)
		}
	}
	for _, types := range order {
		var useless object
		var required []string
		for _, k := range groups[types] {
			useless = append(useless, member{k.name, false})
			if k.required {
				required = append(required, k.name)
			}
		}
		is := object{{"properties", object{{"type", object{{"enum", split(types)}}}}}}
		if !slices.Contains(split(types), usual) {
			is = append(is, member{"required", []string{"type"}})
		}
		rule := object{{"if", is}}
		if required != nil {
			rule = append(rule, member{"then", object{{"required", required}}})
		}
		rules = append(rules, append(rule, member{"else", object{{"properties", useless}}}))
	}
	return rules
}
