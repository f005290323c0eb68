package docs

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/natal-pki/natal/test/e2e/harness"
)

var action = regexp.MustCompile("(?m)^\\| `([a-z_]+)` \\|")

// Every action that the source gives to an audit entry stands in the table of docs/audit.md, and no other.
func TestAuditActionsAreDocumented(t *testing.T) {
	t.Parallel()
	_, table, _ := strings.Cut(pages(t)["docs/audit.md"], "## Actions")
	documented := map[string]bool{}
	for _, m := range action.FindAllStringSubmatch(table, -1) {
		documented[m[1]] = true
	}
	used := auditActions(t)
	if len(used) < 25 {
		t.Fatalf("only %d actions found: the search is broken", len(used))
	}
	for name, where := range used {
		if !documented[name] {
			t.Errorf("%s: action %s is not in docs/audit.md", where, name)
		}
		delete(documented, name)
	}
	for name := range documented {
		t.Errorf("docs/audit.md: no source writes action %s", name)
	}
}

// auditActions finds the values of the field Action of every audit.Entry outside tests, with a place each: literals, constants
// of package audit, and what callers pass for a parameter.
func auditActions(t *testing.T) map[string]string {
	t.Helper()
	found := map[string]string{}
	for _, tree := range []string{"ca", "server", "internal"} {
		err := filepath.WalkDir(filepath.Join(harness.Root(), tree), func(path string, entry fs.DirEntry, err error) error {
			if err == nil && entry.IsDir() {
				auditActionsOf(t, path, found)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return found
}

func auditActionsOf(t *testing.T, dir string, found map[string]string) {
	t.Helper()
	set := token.NewFileSet()
	sources, _ := filepath.Glob(filepath.Join(dir, "*.go"))
	var files []*ast.File
	for _, source := range sources {
		if strings.HasSuffix(source, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(set, source, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, file)
	}
	note := func(at ast.Node, e ast.Expr) bool {
		literal, ok := e.(*ast.BasicLit)
		if ok {
			name, _ := strconv.Unquote(literal.Value)
			found[name] = set.Position(at.Pos()).String()
		}
		return ok
	}
	for _, file := range files {
		for _, d := range file.Decls {
			ast.Inspect(d, func(n ast.Node) bool {
				pair, ok := n.(*ast.KeyValueExpr)
				if !ok {
					return true
				}
				if key, ok := pair.Key.(*ast.Ident); !ok || key.Name != "Action" {
					return true
				}
				function, _ := d.(*ast.FuncDecl)
				switch value := pair.Value.(type) {
				case *ast.SelectorExpr:
					if value.Sel.Name == "Restored" {
						found["restored"] = set.Position(n.Pos()).String()
					}
				case *ast.Ident:
					passed(files, function, value.Name, note)
				default:
					note(n, value)
				}
				return true
			})
		}
	}
}

// passed notes what the callers of function in its package pass for its parameter, or what is assigned to a variable of that name in it.
func passed(files []*ast.File, function *ast.FuncDecl, name string, note func(ast.Node, ast.Expr) bool) {
	if function == nil {
		return
	}
	ast.Inspect(function, func(n ast.Node) bool {
		if assign, ok := n.(*ast.AssignStmt); ok {
			for i, left := range assign.Lhs {
				if id, ok := left.(*ast.Ident); ok && id.Name == name && i < len(assign.Rhs) {
					note(n, assign.Rhs[i])
				}
			}
		}
		return true
	})
	var parameters []string
	for _, field := range function.Type.Params.List {
		for _, id := range field.Names {
			parameters = append(parameters, id.Name)
		}
	}
	at := slices.Index(parameters, name)
	if at < 0 {
		return
	}
	for _, file := range files {
		for _, d := range file.Decls {
			ast.Inspect(d, func(n ast.Node) bool {
				call, ok := n.(*ast.CallExpr)
				if !ok || len(call.Args) != len(parameters) || calledName(call) != function.Name.Name {
					return true
				}
				if caller, isFunction := d.(*ast.FuncDecl); !note(n, call.Args[at]) && isFunction && caller != function {
					if further, ok := call.Args[at].(*ast.Ident); ok { // the caller hands on what it was given
						passed(files, caller, further.Name, note)
					}
				}
				return true
			})
		}
	}
}

func calledName(call *ast.CallExpr) string {
	switch f := call.Fun.(type) {
	case *ast.SelectorExpr:
		return f.Sel.Name
	case *ast.Ident:
		return f.Name
	}
	return ""
}
