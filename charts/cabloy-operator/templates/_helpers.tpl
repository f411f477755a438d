{{- define "cabloy-operator.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "cabloy-operator.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride }}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" }}
{{- else if contains $name .Release.Name }}
{{- .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 63 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{/* Cluster-wide objects carry the namespace, so that two releases of one name do not meet. */}}
{{- define "cabloy-operator.clusterName" -}}
{{- printf "%s:%s" .Release.Namespace (include "cabloy-operator.fullname" .) }}
{{- end }}

{{- define "cabloy-operator.selectorLabels" -}}
app.kubernetes.io/name: {{ include "cabloy-operator.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "cabloy-operator.labels" -}}
{{ include "cabloy-operator.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/component: operator
app.kubernetes.io/part-of: cabloy
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "cabloy-operator.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "cabloy-operator.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "cabloy-operator.image" -}}
{{- with .Values.image }}
{{- if .digest }}
{{- printf "%s@%s" .repository .digest }}
{{- else }}
{{- printf "%s:%s" .repository (.tag | default $.Chart.AppVersion) }}
{{- end }}
{{- end }}
{{- end }}

{{/* All that the operator may do, in each namespace that it looks after. It reads no Secret, and makes those of the signing keys. */}}
{{- define "cabloy-operator.rules" -}}
# The resources it serves, and its finalizer on them.
- apiGroups: [cabloy.io]
  resources: [cabloyclusters]
  verbs: [get, list, watch, patch]
- apiGroups: [cabloy.io]
  resources: [cabloyclusters/status]
  verbs: [get, patch]
# The workloads that the resources name: the agent, volumes and environment are put into their pod templates.
- apiGroups: [apps]
  resources: [deployments, statefulsets, daemonsets]
  verbs: [get, list, watch, patch]
# Which revisions of a workload still exist, and so which boot files are in use.
- apiGroups: [apps]
  resources: [replicasets, controllerrevisions]
  verbs: [get, list, watch]
# The files of the agents and the apps.
- apiGroups: [""]
  resources: [configmaps]
  verbs: [get, list, watch, create, patch, delete]
# The key that agents sign their calls with: made once, and never read, changed or deleted.
- apiGroups: [""]
  resources: [secrets]
  verbs: [create]
# Where the agents are; an annotation on a pod makes its kubelet refresh mounted files at once.
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch, patch]
# Whether the namespace is about to go: then nothing holds its resources up.
- apiGroups: [""]
  resources: [namespaces]
  verbs: [get]
# What it did, for kubectl describe.
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- end }}
