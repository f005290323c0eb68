// Strict reading of YAML: the decoder's own KnownFields names a line and a Go type; an operator needs the key.

package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"

	"go.yaml.in/yaml/v3"
)

// decode fills the struct that out points to. Unknown keys, doubled keys and wrong kinds are Problems.
func decode(content []byte, out any) error {
	var doc yaml.Node
	dec := yaml.NewDecoder(bytes.NewReader(content))
	if err := dec.Decode(&doc); errors.Is(err, io.EOF) {
		return nil
	} else if err != nil {
		return fmt.Errorf("not YAML: %w", err)
	}
	if err := dec.Decode(&yaml.Node{}); !errors.Is(err, io.EOF) {
		return errors.New("more than one YAML document")
	}
	if len(doc.Content) != 1 {
		return nil
	}
	var problems Problems
	fill(doc.Content[0], reflect.ValueOf(out).Elem(), "", &problems)
	if len(problems) > 0 {
		return problems
	}
	return nil
}

// fill walks the mapping n along the struct v.
func fill(n *yaml.Node, v reflect.Value, path string, problems *Problems) {
	if n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
		return
	}
	if v.Kind() != reflect.Struct {
		fraction := v.Kind() == reflect.Int && n.ShortTag() == "!!float" // which the decoder would cut off
		if err := n.Decode(v.Addr().Interface()); err != nil || n.Kind == yaml.AliasNode || fraction {
			*problems = append(*problems, fmt.Sprintf("%s: line %d: %s", path, n.Line, expected(v)))
		}
		return
	}
	if n.Kind != yaml.MappingNode {
		*problems = append(*problems, fmt.Sprintf("%s: line %d: should be a mapping of keys", orTop(path), n.Line))
		return
	}
	fields := map[string]reflect.Value{}
	for i := range v.NumField() {
		fields[v.Type().Field(i).Tag.Get("yaml")] = v.Field(i)
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		name := n.Content[i].Value
		key := strings.TrimPrefix(path+"."+name, ".")
		field, ok := fields[name]
		switch {
		case !ok:
			*problems = append(*problems, fmt.Sprintf("%s: line %d: unknown key", key, n.Content[i].Line))
		case seen[name]:
			*problems = append(*problems, fmt.Sprintf("%s: line %d: given twice", key, n.Content[i].Line))
		default:
			seen[name] = true
			fill(n.Content[i+1], field, key, problems)
		}
	}
}

func orTop(path string) string {
	if path == "" {
		return "the file"
	}
	return path
}

func expected(v reflect.Value) string {
	switch v.Kind() {
	case reflect.Slice:
		return "should be a list of strings"
	case reflect.Int:
		return "should be a whole number"
	}
	return "should be a string"
}
