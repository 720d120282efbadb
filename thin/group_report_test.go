package thin

import (
	"errors"
	"strings"
	"testing"
	"time"
)

const (
	testGroupUUID = "DO3yAO-7VWu-1spL-eDKa-OR01-ZacJ-jw5aWt"
	testPoolUUID  = "oJCyX6-X1Od-MwRe-cWmi-1Rzo-kkOV-tNMu22"
	testThinUUID  = "YdyBs2-QbU9-MPm2-22Sv-q0dj-5y7N-YTKw78"
)

// reportOf is a report of lvs as it prints it.
func reportOf(lines ...string) string {
	return "  {\n      \"report\": [\n          {\n              \"lv\": [\n" + strings.Join(lines, ",\n") + "\n              ]\n          }\n      ]\n  }\n"
}

const (
	thinLine = `{"vg_name":"vg", "vg_uuid":"` + testGroupUUID + `", "vg_extent_size":"4194304", "lv_name":"th-in", "lv_uuid":"` + testThinUUID +
		`", "lv_size":"33554432", "segtype":"thin", "lv_attr":"Vwi-aotz--", "lv_time":"1795275168", "lv_tags":"decant,mine", "pool_lv":"pool", "pool_lv_uuid":"` + testPoolUUID +
		`", "origin":"base", "thin_id":"7", "chunk_size":"0", "lv_metadata_size":"", "transaction_id":"0"}`
	poolLine = `{"vg_name":"vg", "vg_uuid":"` + testGroupUUID + `", "vg_extent_size":"4194304", "lv_name":"pool", "lv_uuid":"` + testPoolUUID +
		`", "lv_size":"67108864", "segtype":"thin-pool", "lv_attr":"twi---tz--", "lv_time":"1795275166", "lv_tags":"", "pool_lv":"", "pool_lv_uuid":"",` +
		` "origin":"", "thin_id":"", "chunk_size":"65536", "lv_metadata_size":"4194304", "transaction_id":"3"}`
	thickLine = `{"vg_name":"vg", "vg_uuid":"` + testGroupUUID + `", "vg_extent_size":"4194304", "lv_name":"thick", "lv_uuid":"Dm2Ncm-x8Dy-W2S3-NZ3R-gnnX-W0Lf-b4lDnR",` +
		` "lv_size":"16777216", "segtype":"linear", "lv_attr":"-ri-a-----", "lv_time":"", "lv_tags":"", "pool_lv":"", "pool_lv_uuid":"",` +
		` "origin":"", "thin_id":"", "chunk_size":"0", "lv_metadata_size":"", "transaction_id":""}`
)

func TestParseReport(t *testing.T) {
	// A volume with two segments has two lines.
	volumes, err := parseReport([]byte(reportOf(thinLine, poolLine, thickLine, thickLine)))
	if err != nil {
		t.Fatal(err)
	}
	if len(volumes) != 3 {
		t.Fatalf("%d volumes: %+v", len(volumes), volumes)
	}
	v, pool, thick := volumes[0], volumes[1], volumes[2]
	if v.fullName() != "vg/th-in" || v.bytes != 32<<20 || v.extentBytes != 4<<20 || v.thinID != 7 || v.pool != "pool" ||
		v.poolUUID != testPoolUUID || v.origin != "base" || len(v.tags) != 2 || !v.created.Equal(time.Unix(1795275168, 0)) {
		t.Errorf("%+v", v)
	}
	if !v.active() || !v.open() || v.readOnly() || pool.active() || pool.open() || !thick.readOnly() {
		t.Errorf("the attributes are not understood: %+v", volumes)
	}
	if pool.chunkBytes != 64<<10 || pool.metadataBytes != 4<<20 || pool.transactionID != 3 {
		t.Errorf("%+v", pool)
	}
	if want := "LVM-DO3yAO7VWu1spLeDKaOR01ZacJjw5aWtYdyBs2QbU9MPm222Svq0dj5y7NYTKw78"; v.deviceUUID() != want {
		t.Errorf("device %s, want %s", v.deviceUUID(), want)
	}
}

func TestParseReportOfEmptyGroup(t *testing.T) {
	volumes, err := parseReport([]byte(reportOf()))
	if err != nil || len(volumes) != 0 {
		t.Errorf("%v, %v", volumes, err)
	}
}

func TestParseReportRefuses(t *testing.T) {
	for name, text := range map[string]string{
		"nothing":          "",
		"no JSON":          "  Volume group \"x\" not found",
		"cut off":          reportOf(thinLine)[:200],
		"no report":        `{"report":[]}`,
		"another form":     `{"report":"none"}`,
		"number as number": reportOf(strings.Replace(thinLine, `"33554432"`, "33554432", 1)),
		"unit":             reportOf(strings.Replace(thinLine, "33554432", "33554432B", 1)),
		"negative size":    reportOf(strings.Replace(thinLine, "33554432", "-1", 1)),
		"no size":          reportOf(strings.Replace(thinLine, "33554432", "", 1)),
		"no UUID":          reportOf(strings.Replace(thinLine, testThinUUID, "", 1)),
		"short group UUID": reportOf(strings.Replace(thinLine, testGroupUUID, "DO3yAO", 1)),
		"option as name":   reportOf(strings.Replace(thinLine, `"th-in"`, `"--force"`, 1)),
		"path as name":     reportOf(strings.Replace(thinLine, `"th-in"`, `"../x"`, 1)),
		"no extents":       reportOf(strings.Replace(thinLine, "4194304", "0", 1)),
		"no thin id":       reportOf(strings.Replace(thinLine, `"thin_id":"7"`, `"thin_id":""`, 1)),
		"no pool":          reportOf(strings.Replace(thinLine, testPoolUUID, "", 1)),
		"no chunk size":    reportOf(strings.Replace(poolLine, "65536", "0", 1)),
	} {
		if volumes, err := parseReport([]byte(text)); !errors.Is(err, errReport) {
			t.Errorf("%s: %+v, %v", name, volumes, err)
		}
	}
}

// fault 93: whatever a report says, no name in it can be an option or a path.
func FuzzParseReport(f *testing.F) {
	f.Add([]byte(reportOf(thinLine, poolLine, thickLine)))
	f.Add([]byte(reportOf()))
	f.Fuzz(func(t *testing.T, text []byte) {
		volumes, err := parseReport(text)
		if err != nil {
			return
		}
		for _, l := range volumes {
			if ValidateGroupName(l.group) != nil || ValidateGroupName(l.name) != nil || l.bytes < 0 || l.extentBytes <= 0 {
				t.Errorf("%+v", l)
			}
			if l.segment == thinSegment && (ValidateGroupName(l.pool) != nil || len(l.deviceUUID()) != len("LVM-")+64) {
				t.Errorf("%+v", l)
			}
			_, _, _ = l.active(), l.open(), l.readOnly() // must not panic on short attributes
		}
	})
}

func TestChoosePool(t *testing.T) {
	second := strings.NewReplacer(`"lv_name":"pool"`, `"lv_name":"pool2"`, testPoolUUID, "iwhAKQ-vUdG-tAG0-g3BQ-Apva-a7M6-CMNKJ8").Replace(poolLine)
	for _, test := range []struct {
		name, ask string
		lines     []string
		want      string
		err       error
		says      string
	}{
		{"the only one", "", []string{thinLine, poolLine}, "pool", nil, ""},
		{"named", "pool2", []string{poolLine, second}, "pool2", nil, ""},
		{"several", "", []string{poolLine, second}, "", ErrInvalid, "pool, pool2; say which one with --thin-pool"},
		{"none", "", []string{thickLine}, "", ErrNotFound, "no thin pool"},
		{"empty group", "pool", nil, "", ErrNotFound, "no thin pool"},
		{"unknown", "pool3", []string{poolLine, second}, "", ErrNotFound, "has the thin pools pool, pool2"},
		{"no pool of that name", "thick", []string{poolLine, thickLine}, "", ErrNotFound, "has the thin pools pool;"},
	} {
		t.Run(test.name, func(t *testing.T) {
			volumes, err := parseReport([]byte(reportOf(test.lines...)))
			if err != nil {
				t.Fatal(err)
			}
			pool, err := choosePool("vg", test.ask, volumes)
			if !errors.Is(err, test.err) || pool.name != test.want {
				t.Errorf("pool %q, %v", pool.name, err)
			}
			if test.err != nil && !strings.Contains(err.Error(), test.says) {
				t.Errorf("%q does not say %q", err, test.says)
			}
		})
	}
}

func TestFindThin(t *testing.T) {
	volumes, err := parseReport([]byte(reportOf(thinLine, poolLine, thickLine)))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]struct {
		err  error
		says string
	}{
		"th-in": {nil, ""},
		"nope":  {ErrNotFound, "no such volume"},
		"pool":  {ErrInvalid, "thin pool"},
		"thick": {ErrInvalid, "/dev/vg/thick"},
		"-th":   {ErrInvalid, "begins with"},
	} {
		_, err := findThin("open volume", "vg", name, volumes)
		if !errors.Is(err, want.err) || err != nil && !strings.Contains(err.Error(), want.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
