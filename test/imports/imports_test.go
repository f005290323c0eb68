// Package imports holds the test of the import directions: who may import whom within the project, what the device library
// may need, and which package names say nothing.
package imports

import (
	"bytes"
	"encoding/json"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/natal-pki/natal"

// forbidden lists, for a tree of packages, what its non-test code must not reach, directly or through others of the project's
// own packages. Everything else follows the direction server -> ca -> internal.
var forbidden = []struct {
	tree    string
	targets []string
}{
	{"ca", []string{"server", "client", "broker-bridge", "estclient-example", "net/http"}},
	{"client", []string{"server", "ca", "broker-bridge", "estclient-example", "internal/database"}},
	{"estclient-example", []string{"server", "ca", "broker-bridge", "internal/database"}},
	{"broker-bridge", []string{"server", "ca", "estclient-example", "internal/database"}},
	{"internal", []string{"server", "ca", "broker-bridge", "estclient-example", "configs"}},
	{"configs", []string{"server", "ca", "client", "broker-bridge", "estclient-example", "internal"}},
	{"server", []string{"broker-bridge", "estclient-example"}},
}

// clientMay lists all the packages of the project that the device library imports.
var clientMay = []string{"client", "internal/wire", "internal/atomicfile", "internal/clock", "internal/fault"}

// leaves import no other package of the project.
var leaves = []string{"internal/clock", "internal/fault", "internal/atomicfile"}

type pkg struct {
	ImportPath string
	Name       string
	Standard   bool
	Imports    []string
	Deps       []string
}

func (p pkg) path() string { return strings.TrimPrefix(p.ImportPath, module+"/") }

// load lists the project's packages (non-test files) and all they depend on, as the go command sees them.
func load(t *testing.T, tags string) map[string]pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-deps", "-json=ImportPath,Name,Standard,Imports,Deps", "-tags", tags, module+"/...")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.String())
	}
	packages := map[string]pkg{}
	for d := json.NewDecoder(bytes.NewReader(out)); d.More(); {
		var p pkg
		if err := d.Decode(&p); err != nil {
			t.Fatal(err)
		}
		packages[p.ImportPath] = p
	}
	return packages
}

func own(importPath string) bool { return strings.HasPrefix(importPath, module+"/") }

func within(path, tree string) bool { return path == tree || strings.HasPrefix(path, tree+"/") }

// ownClosure is p and every package of the project that it reaches through the project's own imports.
func ownClosure(packages map[string]pkg, p pkg) []pkg {
	seen := map[string]bool{p.ImportPath: true}
	all := []pkg{p}
	for i := 0; i < len(all); i++ {
		for _, imported := range all[i].Imports {
			if own(imported) && !seen[imported] {
				seen[imported] = true
				all = append(all, packages[imported])
			}
		}
	}
	return all
}

// violations are the sentences of design that the packages break.
func violations(packages map[string]pkg) []string {
	var found []string
	for _, p := range packages {
		if !own(p.ImportPath) {
			continue
		}
		if slices.Contains([]string{"util", "utils", "common", "helpers", "types"}, p.Name) {
			found = append(found, p.path()+": the name "+p.Name+" says nothing")
		}
		for _, q := range ownClosure(packages, p) {
			for _, imported := range q.Imports {
				if why := refused(p, imported); why != "" {
					found = append(found, p.path()+" reaches "+imported+" through "+q.path()+": "+why)
				}
			}
		}
	}
	slices.Sort(found)
	return slices.Compact(found)
}

func refused(p pkg, imported string) string {
	target := strings.TrimPrefix(imported, module+"/")
	if within(target, "test") && own(imported) && !within(p.path(), "test") {
		return "only tests import test"
	}
	for _, rule := range forbidden {
		if !within(p.path(), rule.tree) {
			continue
		}
		for _, t := range rule.targets {
			if within(target, t) && (own(imported) || t == "net/http") {
				return rule.tree + " never imports " + t
			}
		}
	}
	if within(p.path(), "client") && own(imported) && !slices.Contains(clientMay, target) {
		return "client imports only " + strings.Join(clientMay, ", ")
	}
	if slices.Contains(leaves, p.path()) && own(imported) {
		return p.path() + " is a leaf"
	}
	return ""
}

func TestImportDirections(t *testing.T) {
	t.Parallel()
	for _, tags := range []string{"", "testhooks"} {
		for _, v := range violations(load(t, tags)) {
			t.Errorf("tags %q: %s", tags, v)
		}
	}
}

// The device library is meant to be taken into other people's firmware: it brings nothing along.
func TestClientNeedsOnlyTheStandardLibrary(t *testing.T) {
	t.Parallel()
	packages := load(t, "")
	client, ok := packages[module+"/client"]
	if !ok {
		t.Fatal("no package client")
	}
	for _, dep := range client.Deps {
		if !packages[dep].Standard && !own(dep) {
			t.Errorf("client needs %s", dep)
		}
	}
}

// The rules are tried on a made-up project, so that a mistake in them shows.
func TestRulesRefuse(t *testing.T) {
	t.Parallel()
	cases := []struct {
		name    string
		imports map[string][]string // package -> its imports; "=" marks the standard library
		bad     bool
	}{
		{"downwards", map[string][]string{"server/front": {"ca", "internal/clock"}, "ca": {"ca/profile", "internal/clock"}, "ca/profile": nil, "internal/clock": nil}, false},
		{"client to ca", map[string][]string{"client": {"ca"}, "ca": nil}, true},
		{"client to another internal package", map[string][]string{"client": {"internal/audit"}, "internal/audit": nil}, true},
		{"ca to net/http", map[string][]string{"ca": {"=net/http"}}, true},
		{"ca to net/http through a subpackage", map[string][]string{"ca": {"ca/lint"}, "ca/lint": {"internal/x"}, "internal/x": {"=net/http/httputil"}}, true},
		{"ca to server", map[string][]string{"ca/lint": {"server/config"}, "server/config": nil}, true},
		{"code to test", map[string][]string{"server": {"test/testpki"}, "test/testpki": nil}, true},
		{"test to test", map[string][]string{"test/e2e/harness": {"test/testpki", "server/config"}, "test/testpki": nil, "server/config": nil}, false},
		{"bridge to server through internal", map[string][]string{"broker-bridge/bridge": {"internal/x"}, "internal/x": {"server/feed"}, "server/feed": nil}, true},
		{"leaf with an import", map[string][]string{"internal/clock": {"internal/fault"}, "internal/fault": nil}, true},
		{"package of no meaning", map[string][]string{"internal/util": nil}, true},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			packages := map[string]pkg{}
			for path, imports := range tc.imports {
				p := pkg{ImportPath: module + "/" + path, Name: path[strings.LastIndex(path, "/")+1:]}
				for _, i := range imports {
					if standard, ok := strings.CutPrefix(i, "="); ok {
						p.Imports = append(p.Imports, standard)
					} else {
						p.Imports = append(p.Imports, module+"/"+i)
					}
				}
				packages[p.ImportPath] = p
			}
			if found := violations(packages); (len(found) > 0) != tc.bad {
				t.Errorf("violations: %q, want some: %v", found, tc.bad)
			}
		})
	}
}
