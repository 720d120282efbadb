package thin

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// The segment types of LVM that matter here.
const (
	thinPoolSegment = "thin-pool"
	thinSegment     = "thin"
)

// reportFields are what lvs is asked for; reportLine takes them apart.
const reportFields = "vg_name,vg_uuid,vg_extent_size,lv_name,lv_uuid,lv_size,segtype,lv_attr,lv_time,lv_tags," +
	"pool_lv,pool_lv_uuid,origin,thin_id,chunk_size,lv_metadata_size,transaction_id"

// reportConfig keeps the administrator's taste in reports out of them.
const reportConfig = `report { compact_output=0 compact_output_cols="" time_format="%s" list_item_separator="," binary_values_as_numeric=1 } ` +
	`log { report_command_log=0 }`

// logicalVolume is a volume of a group, of any type.
type logicalVolume struct {
	group, groupUUID string
	extentBytes      int64
	name, uuid       string
	bytes            int64
	segment          string // type of its (first) segment
	attributes       string // as lvs shows them
	tags             []string
	created          time.Time
	// Of a thin volume:
	pool, poolUUID string
	origin         string // volume in the same group, or empty
	thinID         uint64
	// Of a thin pool:
	chunkBytes    int64
	metadataBytes int64
	transactionID uint64
}

// attribute is one of the letters of lv_attr.
func (l logicalVolume) attribute(i int) byte {
	if i < len(l.attributes) {
		return l.attributes[i]
	}
	return '-'
}

func (l logicalVolume) readOnly() bool { return l.attribute(1) == 'r' }
func (l logicalVolume) active() bool   { return l.attribute(4) == 'a' }
func (l logicalVolume) open() bool     { return l.attribute(5) == 'o' }
func (l logicalVolume) fullName() string {
	return l.group + "/" + l.name
}

// deviceUUID is that of the volume's device in device-mapper.
func (l logicalVolume) deviceUUID() string { return deviceUUID(l.groupUUID, l.uuid) }

func deviceUUID(groupUUID, uuid string) string {
	return "LVM-" + strings.ReplaceAll(groupUUID+uuid, "-", "")
}

// reportLine is a line of a report. All of its values are strings.
type reportLine struct {
	Group         string `json:"vg_name"`
	GroupUUID     string `json:"vg_uuid"`
	ExtentBytes   string `json:"vg_extent_size"`
	Name          string `json:"lv_name"`
	UUID          string `json:"lv_uuid"`
	Bytes         string `json:"lv_size"`
	Segment       string `json:"segtype"`
	Attributes    string `json:"lv_attr"`
	Time          string `json:"lv_time"`
	Tags          string `json:"lv_tags"`
	Pool          string `json:"pool_lv"`
	PoolUUID      string `json:"pool_lv_uuid"`
	Origin        string `json:"origin"`
	ThinID        string `json:"thin_id"`
	ChunkBytes    string `json:"chunk_size"`
	MetadataBytes string `json:"lv_metadata_size"`
	TransactionID string `json:"transaction_id"`
}

// errReport: a report of LVM that does not have the documented form.
var errReport = errors.New("the report of LVM is not of a form that this program knows")

// parseReport reads a report of lvs. A volume with several segments has a line for
// each; the first one stands for it.
func parseReport(text []byte) ([]logicalVolume, error) {
	var report struct {
		Report []struct {
			LV []reportLine `json:"lv"`
		} `json:"report"`
	}
	if err := json.Unmarshal(text, &report); err != nil {
		return nil, fmt.Errorf("%w: %w", errReport, err)
	}
	if len(report.Report) == 0 {
		return nil, fmt.Errorf("%w: it is empty", errReport)
	}
	var volumes []logicalVolume
	known := map[string]bool{}
	for _, part := range report.Report {
		for _, line := range part.LV {
			if line.UUID != "" && known[line.UUID] {
				continue
			}
			known[line.UUID] = true
			l, err := line.volume()
			if err != nil {
				return nil, fmt.Errorf("%w: volume %q: %w", errReport, line.Name, err)
			}
			volumes = append(volumes, l)
		}
	}
	return volumes, nil
}

// volume makes numbers of the strings, and refuses what is missing.
func (r reportLine) volume() (logicalVolume, error) {
	l := logicalVolume{
		group: r.Group, groupUUID: r.GroupUUID, name: r.Name, uuid: r.UUID, segment: r.Segment, attributes: r.Attributes,
		pool: r.Pool, poolUUID: r.PoolUUID, origin: r.Origin,
	}
	if r.Tags != "" {
		l.tags = strings.Split(r.Tags, ",")
	}
	for _, uuid := range []string{r.GroupUUID, r.UUID} {
		if len(strings.ReplaceAll(uuid, "-", "")) != 32 {
			return l, fmt.Errorf("the UUID %q", uuid)
		}
	}
	if err := ValidateGroupName(r.Group); err != nil {
		return l, err
	}
	if err := ValidateGroupName(r.Name); err != nil {
		return l, err
	}
	if seconds, err := strconv.ParseInt(r.Time, 10, 64); err == nil {
		l.created = time.Unix(seconds, 0).UTC()
	}
	errs := []error{number(&l.extentBytes, r.ExtentBytes), number(&l.bytes, r.Bytes)}
	switch r.Segment {
	case thinSegment:
		errs = append(errs, number(&l.thinID, r.ThinID))
		if len(strings.ReplaceAll(r.PoolUUID, "-", "")) != 32 || ValidateGroupName(r.Pool) != nil {
			errs = append(errs, fmt.Errorf("the pool %q with the UUID %q", r.Pool, r.PoolUUID))
		}
	case thinPoolSegment:
		errs = append(errs, number(&l.chunkBytes, r.ChunkBytes), number(&l.metadataBytes, r.MetadataBytes), number(&l.transactionID, r.TransactionID))
		if l.chunkBytes <= 0 {
			errs = append(errs, fmt.Errorf("the chunk size %q", r.ChunkBytes))
		}
	}
	if l.extentBytes <= 0 || l.bytes < 0 || l.metadataBytes < 0 {
		errs = append(errs, errors.New("a size that is negative or 0"))
	}
	return l, errors.Join(errs...)
}

// number reads a number that must be there.
func number[N int64 | uint64](n *N, text string) error {
	v, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64)
	*n = N(v)
	if err == nil && v < 0 {
		return fmt.Errorf("the number %q is negative", text)
	}
	return err
}

// volumes is all volumes of a group but those of LVM's own. It is ErrNotFound if
// there is no such group, or none that LVM can read; then the error has its words.
func (l lvm2) volumes(group string) ([]logicalVolume, error) {
	const op = "look at the volume group"
	if err := ValidateGroupName(group); err != nil {
		return nil, err
	}
	text, err := l.run("lvs", "--reportformat", "json", "--units", "b", "--nosuffix",
		"--config", reportConfig, "--options", reportFields, "--", group)
	var failed *commandError
	switch {
	case errors.As(err, &failed):
		return nil, &Error{Op: op, Object: group, State: failed.Error(), Err: errors.Join(ErrNotFound, err), Hint: "see which groups there are: vgs"}
	case err != nil:
		return nil, wrap(err, op, group)
	}
	volumes, err := parseReport(text)
	return volumes, wrap(err, op, group)
}
