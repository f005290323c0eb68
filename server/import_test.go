// Imports on the command line: sheets, refusals, and the way back when the answer was lost.

package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/natal-pki/natal/test/testpki"
)

func TestCodeImport(t *testing.T) {
	t.Parallel()
	dir, files := instanceDir(t), t.TempDir()
	list := testpki.WriteFile(t, filepath.Join(files, "list.csv"), []byte("\xef\xbb\xbfid;service;expires\r\nSN-1;pumps;12h\r\n\"SN-2\";;\r\nSN-3;;2099-01-01T00:00:00Z\r\n"))
	sheet, print := filepath.Join(files, "sheet.csv"), filepath.Join(files, "sheet.pdf")
	if r := run(t, "code", "import", list, "--out", sheet, "--data", dir); r.code != 1 || !strings.Contains(r.stderr, "line 4: code_life: ") || !strings.Contains(r.stderr, "1 bad lines, nothing was imported") {
		t.Errorf("a code for a lifetime: %+v", r)
	}
	list = testpki.WriteFile(t, filepath.Join(files, "list.csv"), []byte("\xef\xbb\xbfid;service;expires\r\nSN-1;pumps;12h\r\n\"SN-2\";;\r\n"))
	if out := must(t, dir, "code", "import", list, "--check"); !strings.Contains(out, "2 devices, nothing wrong") {
		t.Error(out)
	}
	out := must(t, dir, "code", "import", list, "--out", sheet, "--print", print, "--est-url", "https://est.example.com:8443")
	if !strings.Contains(out, "2 devices imported") {
		t.Error(out)
	}
	for _, file := range []string{sheet, print} {
		if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 || info.Size() < 100 {
			t.Errorf("%s: %v", file, err)
		}
	}
	content, err := os.ReadFile(sheet)
	lines := strings.Split(strings.TrimSpace(string(content)), "\n")
	if err != nil || len(lines) != 3 || lines[0] != "id,label,sans,service,code,expires" || !strings.HasPrefix(lines[1], "SN-1,default,,pumps,") || len(strings.Split(lines[2], ",")[4]) != 26 {
		t.Fatalf("%v\n%s", err, content)
	}
	// As after an answer that was lost.
	if out := must(t, dir, "code", "import", sheet); !strings.Contains(out, "nothing was changed") {
		t.Error(out)
	}
	var codes struct {
		Items []struct{ Device, State, Code string }
	}
	if err := json.Unmarshal([]byte(must(t, dir, "code", "list", "--json")), &codes); err != nil || len(codes.Items) != 2 || codes.Items[0].State != "active" || codes.Items[0].Code != "" {
		t.Errorf("%+v, %v", codes, err)
	}
}

func TestCodeImportRefusals(t *testing.T) {
	t.Parallel()
	dir, files := instanceDir(t), t.TempDir()
	must(t, dir, "device", "add", "there")
	out := filepath.Join(files, "sheet.csv")
	list := testpki.WriteFile(t, filepath.Join(files, "list.csv"), []byte("id,label,code\ngood,,\nthere,,\nx\nTHERE,,\nnatal-1,,\nweak,,dojot\nlost,nowhere,\n=1+1,,\n"))
	r := run(t, "code", "import", list, "--out", out, "--data", dir)
	for _, want := range []string{"line 3: device_exists: ", "line 4: columns: ", "line 5: device_twice: ", "line 6: device_id_reserved: ", "line 7: code_weak: ", "line 8: unknown_label: ", "line 9: device_id: ", ": 7 bad lines, nothing was imported"} {
		if !strings.Contains(r.stderr, want) {
			t.Errorf("%q is missing in\n%s", want, r.stderr)
		}
	}
	if _, err := os.Lstat(out); r.code != 1 || err == nil || strings.Contains(r.stderr, "dojot") {
		t.Errorf("exit code %d, sheet: %v", r.code, err)
	}
	for args, want := range map[string]string{
		list:                     "--out FILE",
		list + " --print x.pdf":  "go together",
		"/dev/null --out " + out: "no header",
		filepath.Join(files, "none") + " --out x": "no such file",
	} {
		if r := run(t, append(append([]string{"code", "import"}, strings.Fields(args)...), "--data", dir)...); r.code == 0 || !strings.Contains(r.stderr, want) {
			t.Errorf("%s: %d %s", args, r.code, r.stderr)
		}
	}
	testpki.WriteFile(t, out, []byte("kept"))
	one := testpki.WriteFile(t, filepath.Join(files, "one.csv"), []byte("id\ngood\n"))
	if r := run(t, "code", "import", one, "--out", out, "--data", dir); r.code != 1 || !strings.Contains(r.stderr, "nothing was imported") {
		t.Errorf("over a file: %+v", r)
	}
	if content, err := os.ReadFile(out); err != nil || string(content) != "kept" {
		t.Errorf("%s, %v", content, err)
	}
	if r := run(t, "device", "show", "good", "--data", dir); r.code != 1 {
		t.Error("a refused import left a device")
	}
}

// A code that was chosen elsewhere comes in a file, counts for its device, and is weighed.
func TestChosenCodes(t *testing.T) {
	t.Parallel()
	dir, files := instanceDir(t), t.TempDir()
	strong := testpki.WriteFile(t, filepath.Join(files, "strong"), []byte("8f3kq02mvnz6tyw1xa7p5rjdb9\n"))
	weak := testpki.WriteFile(t, filepath.Join(files, "weak"), []byte("dojot\n"))
	if r := run(t, "device", "add", "SN-1", "--code-file", weak, "--data", dir); r.code != 1 || !strings.Contains(r.stderr, "code_weak") || strings.Contains(r.stderr, "dojot") {
		t.Errorf("%+v", r)
	}
	must(t, dir, "device", "add", "SN-1", "--code-file", strong)
	if r := run(t, "code", "create", "SN-1", "--code-file", strong, "--data", dir); r.code != 1 || !strings.Contains(r.stderr, "code_reused") {
		t.Errorf("the same code again: %+v", r)
	}
	made := filepath.Join(files, "made")
	must(t, dir, "device", "add", "SN-2", "--with-code", "--out", made)
	if code, err := os.ReadFile(made); err != nil || len(strings.TrimSpace(string(code))) != 26 {
		t.Errorf("%q, %v", code, err)
	}
	if r := run(t, "device", "add", "SN-3", "--with-code", "--code-file", strong, "--data", dir); r.code != 2 {
		t.Errorf("both: %+v", r)
	}
}
