// Package fault_test is the fault matrix: a row for each step at which the project makes something durable (steps_test.go), and the server's steps failing
// in both ways with all that may follow (matrix_test.go, operations_test.go, with the tag testhooks).
package fault_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/natal-pki/natal/test/e2e/harness"
)

// elsewhere are the steps whose tests stand beside them: the file and the test that lets each of them fail.
var elsewhere = map[string][]string{
	"client/crash_test.go TestFaultAtEveryStep": {
		"client.link", "client.prove", "client.restore.bundle", "client.restore.cert", "client.restore.key", "client.slot.bundle", "client.slot.cert",
		"client.slot.key", "client.slot.unprove", "client.stage", "client.switch", "client.trust", "client.unstage",
	},
	"broker-bridge/bridge/fault_test.go TestEveryStepFailsBothWays": {
		"bridge.acl", "bridge.bundle", "bridge.canary", "bridge.generation", "bridge.kicked", "bridge.queue", "bridge.reset", "bridge.server_certificate",
		"bridge.services_acl", "bridge.synced", "bridge.verified",
	},
	"server/instance/epoch_test.go TestRememberedHeadIsNeverAhead":   {"instance.epoch"},
	"server/instance/backup_test.go TestBackupAndRestoreAtEveryStep": {"instance.restate", "instance.snapshot", "instance.unpack", "instance.unpack_config"},
	"ca/clock_accept_test.go TestAcceptClock":                        {"clock.accept"},
	"test/fault/output_test.go TestBackupFile":                       {"backup.record", "server.backup"},
	"server/instance/epoch_test.go TestCheckpointOnceADay":           {"instance.checkpoint"},
	"server/instance/fault_test.go TestInitResumesAtEveryStep": {
		"instance.audit_key", "instance.audit_public", "instance.begin", "instance.config", "instance.file", "instance.finish", "instance.secret", "instance.server_certificate",
	},
	"test/fault/bridge_test.go TestBridgeSetup":   {"bridge.setup_file", "bridge.setup_mark"},
	"test/fault/bridge_test.go TestBridgeApprove": {"bridge.approve"},
	"ca/crl_parts_test.go TestPartsFail":          {"crl.part", "crl.part_prune"},
	"test/fault/output_test.go TestOutputFile":    {"server.output"},
	"test/fault/output_test.go TestNewFiles":      {"server.output_new"},
	"test/fault/output_test.go TestStreamedFile":  {"server.stream"},
}

// inProcess are the prefixes of the steps that TestServerSteps lets fail, all of them.
var inProcess = []string{"ca.", "registration.", "keystore.", "admin.", "feed."}

func isInProcess(step string) bool {
	return slices.ContainsFunc(inProcess, func(prefix string) bool { return strings.HasPrefix(step, prefix) })
}

func TestEveryStepHasARow(t *testing.T) {
	t.Parallel()
	steps := scan(t)
	rows := map[string]string{}
	for test, list := range elsewhere {
		file, name, _ := strings.Cut(test, " ")
		if !declares(t, filepath.Join(harness.Root(), file), name) {
			t.Errorf("%s has no test %s", file, name)
		}
		for _, step := range list {
			rows[step] = test
		}
	}
	for step, where := range steps {
		if rows[step] == "" && !isInProcess(step) {
			t.Errorf("step %s (%s) has no row: nothing lets it fail", step, where)
		}
		delete(rows, step)
	}
	for step := range rows {
		t.Errorf("step %s has a row and is not in the source", step)
	}
	if len(steps) < 50 {
		t.Errorf("only %d steps found: the search is broken", len(steps))
	}
}

// scan finds the name of every step in the source, tests left out.
func scan(t *testing.T) map[string]string {
	t.Helper()
	steps := map[string]string{}
	root := harness.Root()
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := entry.Name()
		if entry.IsDir() && path != root && (strings.HasPrefix(name, ".") || slices.Contains([]string{"bin", "tools", "testdata", "data"}, name)) {
			return fs.SkipDir
		}
		relative, _ := filepath.Rel(root, path)
		if entry.IsDir() || !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") || strings.HasPrefix(relative, "internal/fault/") || relative == "internal/database/database.go" {
			return nil
		}
		return scanFile(t, path, relative, steps)
	})
	if err != nil {
		t.Fatal(err)
	}
	return steps
}

func scanFile(t *testing.T, path, relative string, steps map[string]string) error {
	set := token.NewFileSet()
	file, err := parser.ParseFile(set, path, nil, parser.SkipObjectResolution)
	if err != nil {
		return err
	}
	ast.Inspect(file, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		argument := stepOf(call)
		if argument == nil {
			return true
		}
		where := relative + ":" + strconv.Itoa(set.Position(call.Pos()).Line)
		literal, ok := argument.(*ast.BasicLit)
		if !ok || literal.Kind != token.STRING {
			t.Errorf("%s: the name of the step is not a string literal", where)
			return true
		}
		step, err := strconv.Unquote(literal.Value)
		if err != nil {
			t.Errorf("%s: %v", where, err)
		}
		if other := steps[step]; other != "" {
			t.Errorf("%s: step %s is at %s already: a fault could not tell them apart", where, step, other)
		}
		steps[step] = where
		return true
	})
	return nil
}

// stepOf returns the argument that names the step: the first of fault.Step, the second of a database's Write. atomicfile's Write and those of
// io.Writers are none.
func stepOf(call *ast.CallExpr) ast.Expr {
	f, ok := call.Fun.(*ast.SelectorExpr)
	if !ok {
		return nil
	}
	of := ""
	if x, ok := f.X.(*ast.Ident); ok {
		of = x.Name
	}
	switch {
	case of == "fault" && f.Sel.Name == "Step":
		return call.Args[0]
	case f.Sel.Name == "Write" && len(call.Args) == 3 && of != "atomicfile":
		return call.Args[1]
	}
	return nil
}

func declares(t *testing.T, path, name string) bool {
	t.Helper()
	source, err := os.ReadFile(path)
	if err != nil {
		t.Error(err)
		return false
	}
	file, err := parser.ParseFile(token.NewFileSet(), path, source, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	return slices.ContainsFunc(file.Decls, func(d ast.Decl) bool {
		f, ok := d.(*ast.FuncDecl)
		return ok && f.Recv == nil && f.Name.Name == name
	})
}
